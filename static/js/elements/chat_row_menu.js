import { fromTemplate, sendForm } from "../helpers/dom.js";
import { NO_ID } from "../helpers/ids.js";

const TOAST_FOR = 10_000; // milliseconds

/** The menu of a chat in a list, renaming in its row, and the notice that offers to undo a change. */
export class ChatRowMenu extends HTMLElement {
  #row = null;
  #button = null;
  #hiding = null;

  connectedCallback() {
    const app = this.closest("chat-app");
    app.addEventListener("click", (event) => this.#clicked(event));
    app.addEventListener("dblclick", (event) => this.#renameAt(event));
    app.addEventListener("keydown", (event) => {
      if (event.key === "F2") this.#renameAt(event);
    });
    app.addEventListener("chat:notice", ({ detail }) => this.#show(detail));
    app.addEventListener("submit", (event) => this.#submitted(event));
    this.addEventListener("keydown", (event) => this.#move(event));
    this.addEventListener("toggle", ({ newState }) => this.#toggled(newState === "open"));
  }

  // --- The menu

  #clicked(event) {
    const button = event.target.closest("[data-row-menu]"); // the browser opens the menu after this event
    if (button !== null) this.#prepare(button);
    if (event.target.closest("[data-rename-row]") === null) return;
    const row = this.#row;
    this.hidePopover();
    this.#rename(row);
  }

  #prepare(button) {
    this.#button = button;
    this.#row = button.closest("[data-id]");
    for (const field of this.querySelectorAll("[name=chat]")) field.value = this.#row.dataset.id;
    const { project = "none" } = this.#row.dataset;
    for (const item of this.querySelectorAll("[data-move]")) item.hidden = item.dataset.move === project;
    this.querySelector("details").open = false;
    const isPinned = this.#row.hasAttribute("data-pinned");
    const isArchived = this.#row.hasAttribute("data-archived");
    const shown = { pin: !isPinned && !isArchived, unpin: isPinned, archive: !isArchived, unarchive: isArchived };
    for (const [action, isShown] of Object.entries(shown)) {
      this.querySelector(`[value="${action}"]`).hidden = !isShown;
    }
  }

  #toggled(isOpen) {
    this.#button?.setAttribute("aria-expanded", String(isOpen));
    if (!isOpen) return;
    const { right, left, bottom, top } = this.#button.getBoundingClientRect();
    const { width, height } = this.getBoundingClientRect();
    const x = document.dir === "rtl" ? left : right - width;
    const y = bottom + height < innerHeight ? bottom : top - height;
    this.style.left = `${Math.max(8, Math.min(x, innerWidth - width - 8))}px`;
    this.style.top = `${Math.max(8, y)}px`;
    this.#choices[0].focus();
  }

  get #choices() {
    return [...this.querySelectorAll(".menu-item")].filter((item) => item.checkVisibility());
  }

  #move(event) {
    const steps = { ArrowDown: 1, ArrowUp: -1 };
    if (!(event.key in steps)) return;
    event.preventDefault();
    const choices = this.#choices;
    const next = choices.indexOf(document.activeElement) + steps[event.key];
    choices.at(next % choices.length).focus();
  }

  // --- Renaming

  #renameAt(event) {
    const link = event.target.closest("[data-id] a");
    if (link === null) return;
    event.preventDefault();
    this.#rename(link.closest("[data-id]"));
  }

  #rename(row) {
    if (row.hasAttribute("data-renaming")) return;
    const title = row.querySelector(".sidebar-title, .chats-title");
    const field = fromTemplate(this.querySelector("template[data-title-field]"));
    field.value = title.textContent;
    row.toggleAttribute("data-renaming", true);
    row.querySelector("a").after(field);
    field.select();
    field.focus();
    const end = (isKept) => {
      if (!row.hasAttribute("data-renaming")) return;
      const hadFocus = document.activeElement === field;
      row.removeAttribute("data-renaming");
      field.remove();
      if (hadFocus) row.querySelector("a").focus();
      const name = field.value.trim();
      if (isKept && name !== "" && name !== title.textContent) this.#save(row, title, name);
    };
    field.addEventListener("blur", () => end(true));
    field.addEventListener("keydown", (event) => {
      if (event.isComposing || !["Enter", "Escape"].includes(event.key)) return;
      event.preventDefault();
      event.stopPropagation();
      end(event.key === "Enter");
    });
  }

  async #save(row, title, name) {
    const before = title.textContent;
    title.textContent = name;
    const form = new FormData(this.querySelector("form"));
    form.set("title", name);
    const { isDone, message } = await sendForm(this.dataset.renameUrl.replace(NO_ID, row.dataset.id), form);
    if (!isDone) title.textContent = before;
    if (!isDone || message) this.#show(message);
  }

  // --- Changes

  /** Send a form that changes chats without leaving the page; if that fails the browser submits it. */
  async #submitted(event) {
    const form = event.target;
    const isUndo = form.id === "undo";
    if (!isUndo && !form.matches("[data-changes]") && form.parentElement !== this) return;
    event.preventDefault();
    const button = event.submitter;
    const fields = new FormData(form, button);
    if (!isUndo && !fields.get("chat")) return;
    if (this.matches(":popover-open")) this.hidePopover();
    button.closest("details.menu")?.removeAttribute("open");
    const { isDone, message, undo } = await sendForm(button.getAttribute("formaction") ?? form.getAttribute("action"), fields);
    if (isDone) button.closest(".notices li")?.remove();
    this.#show(message, undo);
    if (!isDone) return;
    form.closest("chat-list")?.deselect();
  }

  #show(message, undo = "") {
    const toast = document.querySelector("[data-toast]");
    clearTimeout(this.#hiding);
    toast.hidden = !message;
    toast.querySelector("[data-toast-text]").textContent = message;
    const button = toast.querySelector("[data-toast-undo]");
    button.hidden = !undo;
    button.value = undo;
    const hide = () => {
      // Not under the pointer, and not while it has the focus.
      if (toast.matches(":hover, :focus-within")) this.#hiding = setTimeout(hide, TOAST_FOR);
      else toast.hidden = true;
    };
    this.#hiding = setTimeout(hide, TOAST_FOR);
  }
}
