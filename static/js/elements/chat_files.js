import { fromTemplate } from "../helpers/dom.js";
import { number } from "../helpers/gettext.js";
import { NO_ID } from "../helpers/ids.js";
import { storageOf } from "../helpers/storage.js";
import { fileSize } from "../helpers/words.js";
import { pageOf } from "../models/draft.js";
import { KnownFiles } from "../models/known_files.js";
import { Upload } from "../models/upload.js";

const AT_ONCE = 2; // uploads at a time: the server decodes one image at a time

/**
 * The files of the message being written: chosen, dropped or pasted, and uploaded at once. The typed text is never
 * touched by a failure.
 *
 * Fires "chat:files" when they change, "chat:announce" (a sentence for the live region) and "chat:files-error" (a
 * sentence for the composer).
 */
export class ChatFiles extends HTMLElement {
  #known;
  #page = null;
  #chips = []; // {item, file, name, stored, upload, message}
  #listening = new AbortController();

  connectedCallback() {
    this.#known = new KnownFiles(storageOf(this.closest("chat-app").dataset.user));
    const { signal } = this.#listening;
    const input = this.querySelector("[data-input]");
    input.removeAttribute("name"); // or the browser would send the files again
    input.tabIndex = -1;
    input.closest("label").hidden = true;
    input.addEventListener("change", () => {
      this.add([...input.files]);
      input.value = ""; // the same file can be chosen again
    });
    this.querySelector("[data-attach]").addEventListener("click", () => input.click());
    this.#list.addEventListener("click", (event) => this.#clicked(event));
    this.#adopt();
    this.#page = pageOf(this.closest("chat-composer").dataset);
    this.#add(this.#known.ofPage(this.#page));
    this.#shown();
    // A file that is dropped beside the field would be opened in place of the page.
    document.addEventListener("dragover", (event) => this.#dragged(event), { signal });
    document.addEventListener("dragleave", (event) => this.#left(event), { signal });
    document.addEventListener("drop", (event) => this.#dropped(event), { signal });
  }

  disconnectedCallback() {
    this.#listening.abort();
    for (const chip of this.#chips) chip.upload?.cancel();
  }

  /** The page whose unsent message has the files; they are kept for it in the tab's storage. */
  set page(page) {
    this.#known.keep(this.#page, []);
    this.#page = page;
    this.#add(this.#known.ofPage(page));
    this.#shown();
  }

  get isEmpty() {
    return this.#chips.length === 0;
  }

  /** The ids of the stored files, in order. */
  get ids() {
    return this.#chips.filter(({ stored }) => stored).map(({ stored }) => stored.id);
  }

  /** Why the message cannot be sent yet; null if it can. */
  get problem() {
    if (this.#chips.some(({ message }) => message !== null)) return this.dataset.failed;
    return this.#chips.every(({ stored }) => stored) ? null : this.dataset.uploading;
  }

  /** Remove all: the message is sent. */
  clear() {
    for (const chip of this.#chips) chip.item.remove();
    this.#chips = [];
    this.#changed();
  }

  /** Show the files with these ids, of a message that was not accepted. */
  restore(ids) {
    this.#add(this.#known.find(ids));
    this.#changed();
  }

  /** Add files and upload them. */
  add(files) {
    let problem = null;
    for (const file of files) {
      if (this.#chips.some((chip) => isSame(chip.file, file))) problem = this.dataset.known;
      else if (this.#chips.length >= Number(this.dataset.most)) problem = this.dataset.tooMany;
      else this.#show({ file, name: file.name || "image" });
    }
    this.#changed();
    if (problem !== null) this.#fail(problem);
    this.#uploadNext();
  }

  /** Take the files of a paste, or its text if it is a long one; whether there was one. */
  paste(data) {
    const files = [...(data?.files ?? [])];
    const text = data?.getData("text/plain") ?? "";
    // Office programs add a picture of the text that is copied.
    if (files.length > 0 && text.trim() === "") {
      this.add(files);
      return true;
    }
    const most = Number(this.dataset.paste);
    if (most === 0 || text.length <= most || this.#chips.length >= Number(this.dataset.most)) return false;
    const file = new File([text], `${this.dataset.pasted}.txt`, { type: "text/plain" });
    this.#show({ file, name: file.name, text });
    this.#changed();
    this.#uploadNext();
    this.#fire("chat:announce", this.dataset.pastedAsFile);
    return true;
  }

  // --- Internal

  get #list() {
    return this.querySelector("[data-chips]");
  }

  /** Turn the boxes that the server rendered into chips. */
  #adopt() {
    for (const item of [...this.#list.children]) {
      const { id, kind, name, size, tokens = "", thumbnail = "", sent } = item.dataset;
      item.remove();
      const stored = { id, kind, name, size: Number(size), tokens: Number(tokens), thumbnail };
      this.#known.put(stored);
      this.#show({ stored, isSent: sent !== undefined });
    }
  }

  #add(files) {
    const shown = new Set(this.ids);
    for (const stored of files) if (!shown.has(stored.id)) this.#show({ stored });
  }

  #show({ stored = null, file = null, name = stored?.name, text = null, isSent = false }) {
    const item = fromTemplate(this.querySelector("[data-chip]"));
    for (const place of item.querySelectorAll("[data-name]")) place.textContent = name;
    const chip = { item, file, name, text, stored: null, upload: null, message: null, isSent };
    this.#chips.push(chip);
    this.#list.append(item);
    if (file?.type.startsWith("image/")) this.#preview(chip, file);
    if (stored === null) this.#detail(chip, fileSize(file.size));
    else this.#uploaded(chip, stored);
  }

  /** A picture of the file before it is uploaded: as a data URL, which the policy of the page allows. */
  #preview(chip, file) {
    if (file.size > 8_000_000) return;
    const reader = new FileReader();
    reader.addEventListener("load", () => this.#picture(chip, reader.result));
    reader.readAsDataURL(file);
  }

  #picture(chip, source) {
    const image = new Image();
    image.alt = "";
    image.src = source;
    image.decode().then(
      () => chip.item.querySelector(".chip-picture").replaceChildren(image),
      () => {}, // the icon stays: the server says what is wrong with the file
    );
  }

  #detail(chip, sentence) {
    chip.item.querySelector("[data-detail]").textContent = sentence;
  }

  #uploadNext() {
    const active = this.#chips.filter(({ upload }) => upload !== null).length;
    const waiting = this.#chips.filter((chip) => chip.upload === null && !chip.stored && chip.message === null);
    for (const chip of waiting.slice(0, AT_ONCE - active)) this.#upload(chip);
  }

  async #upload(chip) {
    if (chip.file.size > Number(this.dataset.maxBytes)) {
      const megabytes = number(Number(this.dataset.maxBytes) / 10 ** 6);
      this.#refused(chip, this.dataset.tooLarge.replace("%s", megabytes), false);
      return;
    }
    const bar = chip.item.querySelector("[data-progress]");
    bar.value = 0;
    chip.upload = new Upload(this.dataset.uploadUrl, {
      file: chip.file,
      name: chip.name,
      token: this.closest("form").elements.csrfmiddlewaretoken.value,
      progress: (part) => {
        if (part < 1) bar.value = part;
        else bar.removeAttribute("value"); // the server checks the file now
      },
    });
    const { stored, message, status } = await chip.upload.done;
    chip.upload = null;
    if (!this.#chips.includes(chip)) {
      if (stored) this.#discard(stored.id); // removed at the last moment
    } else if (stored) {
      this.#known.put(stored);
      this.#uploaded(chip, stored);
      this.#fire("chat:announce", this.dataset.added.replace("%s", chip.name));
    } else {
      const isFinal = [400, 413, 415].includes(status);
      this.#refused(chip, message ?? (status === 0 ? this.dataset.unreachable : this.dataset.refused), !isFinal);
    }
    if (this.isConnected) this.#changed();
    this.#uploadNext();
  }

  #uploaded(chip, stored) {
    chip.stored = stored;
    chip.message = null;
    chip.item.removeAttribute("data-failed");
    chip.item.querySelector("[data-progress]").hidden = true;
    const id = chip.item.querySelector("[data-id]");
    id.value = stored.id;
    id.disabled = false;
    const tokens = stored.tokens ? this.dataset.tokens.replace("%s", number(stored.tokens)) : "";
    this.#detail(chip, [fileSize(stored.size), tokens].filter(Boolean).join(" · "));
    chip.item.querySelector("[data-put-back]").hidden = chip.text === null;
    if (stored.thumbnail && chip.file === null) this.#picture(chip, stored.thumbnail);
  }

  #refused(chip, message, canRetry) {
    chip.message = message;
    chip.item.setAttribute("data-failed", "");
    chip.item.querySelector("[data-progress]").hidden = true;
    chip.item.querySelector("[data-retry]").hidden = !canRetry;
    chip.item.querySelector("[data-put-back]").hidden = chip.text === null;
    this.#detail(chip, message);
    this.#fire("chat:announce", `${chip.name}: ${message}`);
    this.#changed();
  }

  #clicked(event) {
    const chip = this.#chips.find(({ item }) => item.contains(event.target));
    if (chip === undefined) return;
    if (event.target.closest("[data-remove]")) this.#remove(chip);
    if (event.target.closest("[data-put-back]")) {
      this.#remove(chip);
      this.#fire("chat:put-back", chip.text);
    }
    if (event.target.closest("[data-retry]")) {
      chip.message = null;
      chip.item.removeAttribute("data-failed");
      chip.item.querySelector("[data-retry]").hidden = true;
      chip.item.querySelector("[data-progress]").hidden = false;
      this.#detail(chip, fileSize(chip.file.size));
      this.#changed();
      this.#uploadNext();
    }
  }

  #remove(chip) {
    const at = this.#chips.indexOf(chip);
    this.#chips.splice(at, 1);
    chip.upload?.cancel();
    if (chip.stored && !chip.isSent) this.#discard(chip.stored.id);
    chip.item.remove();
    this.#fire("chat:announce", this.dataset.removed.replace("%s", chip.name));
    const next = this.#chips[Math.min(at, this.#chips.length - 1)]?.item.querySelector("[data-remove]");
    (next ?? this.querySelector("[data-attach]")).focus();
    this.#changed();
    this.#uploadNext();
  }

  /** Delete an unsent file on the server; one that stays is removed there after a day. */
  #discard(id) {
    const token = this.closest("form")?.elements.csrfmiddlewaretoken.value ?? "";
    const url = this.dataset.removeUrl.replace(NO_ID, id);
    fetch(url, { method: "POST", headers: { "X-CSRFToken": token, Accept: "application/json" } }).catch((error) => {
      console.warn("Request failed", url, error);
    });
  }

  #changed() {
    this.#shown();
    this.#fire("chat:files");
  }

  #shown() {
    this.#list.hidden = this.isEmpty;
    this.#known.keep(this.#page, this.ids);
  }

  #fail(sentence) {
    this.#fire("chat:files-error", sentence);
  }

  // --- Internal: dropping

  #dragged(event) {
    if (!hasFiles(event)) return;
    event.preventDefault();
    this.closest("chat-composer").toggleAttribute("data-dropping", true);
  }

  #left(event) {
    if (event.relatedTarget === null) this.closest("chat-composer").removeAttribute("data-dropping");
  }

  #dropped(event) {
    this.closest("chat-composer").removeAttribute("data-dropping");
    if (!hasFiles(event) || event.defaultPrevented) return;
    event.preventDefault();
    const items = [...event.dataTransfer.items].filter(({ kind }) => kind === "file");
    const isFolder = items.map((item) => item.webkitGetAsEntry?.()?.isDirectory ?? false);
    const files = items.map((item) => item.getAsFile()).filter((file, at) => file !== null && !isFolder[at]);
    if (isFolder.includes(true)) this.#fail(this.dataset.folder);
    if (files.length > 0) this.add(files);
  }

  #fire(name, detail = null) {
    this.dispatchEvent(new CustomEvent(name, { detail, bubbles: true }));
  }
}

function hasFiles({ dataTransfer }) {
  return dataTransfer?.types.includes("Files") ?? false;
}

function isSame(one, other) {
  if (one === null) return false;
  return one.name === other.name && one.size === other.size && one.lastModified === other.lastModified;
}
