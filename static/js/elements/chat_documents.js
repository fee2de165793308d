import { fetchPage } from "../helpers/dom.js";

const PAUSE = 8_000; // milliseconds between two looks at a document that is read, in case an event was lost

/** The list of documents: uploads with their progress, and the state of each document as events report it. */
export class ChatDocuments extends HTMLElement {
  #app = null;
  #looking = null;
  #received = ({ detail }) => this.#show(detail);

  connectedCallback() {
    this.#app = this.closest("chat-app");
    this.#app?.addEventListener("document.updated", this.#received);
    this.#bind();
    this.#lookLater();
  }

  disconnectedCallback() {
    clearTimeout(this.#looking);
    this.#app?.removeEventListener("document.updated", this.#received);
  }

  #bind() {
    const form = this.querySelector("[data-upload]");
    if (form === null) return;
    form.elements.file.addEventListener("change", () => checkSizes(form.elements.file));
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      void this.#upload(form);
    });
    this.addEventListener("dragover", (event) => event.preventDefault());
    this.addEventListener("drop", (event) => {
      if (event.dataTransfer.files.length === 0) return;
      event.preventDefault();
      form.elements.file.files = event.dataTransfer.files;
      if (checkSizes(form.elements.file)) form.requestSubmit();
    });
  }

  async #upload(form) {
    const button = form.querySelector("[type=submit]");
    const files = [...form.elements.file.files];
    const error = form.querySelector("[data-error]");
    error.hidden = true;
    button.disabled = true;
    let last = null;
    for (const file of files) {
      try {
        last = await send(form, file);
      } catch (failure) {
        error.textContent = `${file.name}: ${failure.message || form.dataset.failed}`;
        error.hidden = false;
      }
    }
    form.querySelector("[data-progress]").hidden = true;
    button.disabled = false;
    form.elements.file.value = "";
    if (last === null) return;
    if (files.length === 1 && this.#app?.navigation) this.#app.navigation.go(last.url);
    else await this.#look();
  }

  #show(event) {
    const row = this.querySelector(`[data-document="${event.document}"]`);
    const bar = row?.querySelector("progress");
    if (bar && event.status === "parsing" && event.percent > 0) bar.value = event.percent;
    else void this.#look();
  }

  #lookLater() {
    const waits = this.querySelector('[data-status="uploaded"], [data-status="parsing"]') !== null;
    if (waits) this.#looking = setTimeout(() => void this.#look(), PAUSE);
  }

  async #look() {
    clearTimeout(this.#looking);
    const { page } = document.hidden ? { page: null } : await fetchPage(location.href);
    if (!this.isConnected) return;
    const fresh = page?.querySelector("chat-documents [data-list]");
    const list = this.querySelector("[data-list]");
    if (fresh && list) list.replaceWith(fresh);
    else if (fresh) this.querySelector(".chats-empty")?.replaceWith(fresh);
    else if (page && list) list.remove();
    this.#lookLater();
  }
}

/** One document: its page is loaded anew when its reading ends. */
export class ChatDocument extends HTMLElement {
  #app = null;
  #looking = null;
  #received = ({ detail }) => {
    if (detail.document === this.dataset.document && this.hasAttribute("data-active")) this.#show(detail);
  };

  connectedCallback() {
    this.#app = this.closest("chat-app");
    this.#app?.addEventListener("document.updated", this.#received);
    if (this.hasAttribute("data-active")) this.#looking = setTimeout(() => void this.#look(), PAUSE);
  }

  disconnectedCallback() {
    clearTimeout(this.#looking);
    this.#app?.removeEventListener("document.updated", this.#received);
  }

  #show(event) {
    const bar = this.querySelector("progress");
    if (bar && event.status === "parsing" && event.percent > 0) bar.value = event.percent;
    else void this.#look();
  }

  async #look() {
    clearTimeout(this.#looking);
    const { page } = document.hidden ? { page: null } : await fetchPage(location.href);
    if (!this.isConnected) return;
    const fresh = page?.querySelector("chat-document");
    if (fresh) this.replaceWith(fresh);
    else this.#looking = setTimeout(() => void this.#look(), PAUSE);
  }
}

/** Refuse files that the server would refuse only after their upload. */
function checkSizes(input) {
  const isTooLarge = [...input.files].some((file) => file.size > Number(input.dataset.maxBytes));
  input.setCustomValidity(isTooLarge ? input.dataset.tooLarge : "");
  return input.reportValidity();
}

/** Upload one file by the form's address and token, with its progress; return the server's answer. */
function send(form, file) {
  const line = form.querySelector("[data-progress]");
  const bar = line.querySelector("progress");
  line.hidden = false;
  line.querySelector("[data-text]").textContent = form.dataset.sending.replace("%s", file.name);
  bar.removeAttribute("value");
  const data = new FormData();
  for (const [name, value] of new FormData(form)) if (name !== "file") data.append(name, value);
  data.append("file", file);
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.upload.addEventListener("progress", (event) => {
      if (event.lengthComputable) bar.value = event.loaded / event.total;
    });
    request.addEventListener("error", () => reject(new Error("")));
    request.addEventListener("load", () => {
      let answer = null;
      try {
        answer = JSON.parse(request.responseText);
      } catch {
        reject(new Error(""));
        return;
      }
      if (request.status < 300) resolve(answer);
      else reject(new Error(answer.message ?? ""));
    });
    request.open("POST", form.action);
    request.setRequestHeader("Accept", "application/json");
    request.send(data);
  });
}
