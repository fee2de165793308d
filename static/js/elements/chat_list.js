import { fetchPage, removeEmptyLists } from "../helpers/dom.js";
import { debounce } from "../helpers/timing.js";

const RELOAD_AFTER = 500; // milliseconds

/** The page of all chats, or of the archive: a selection by checkboxes, and rows kept current. */
export class ChatList extends HTMLElement {
  #last = null; // the checkbox that was changed last, where a selection with Shift begins
  #reloadSoon = debounce(() => this.#reload(), RELOAD_AFTER);

  connectedCallback() {
    this.addEventListener("click", (event) => this.#clicked(event));
    this.addEventListener("change", (event) => {
      if (event.target.matches("[data-select-all]")) this.#selectAll(event.target.checked);
      this.#selected();
    });
    this.#selected();
  }

  disconnectedCallback() {
    this.#reloadSoon.cancel();
  }

  /** Show a conversation as a `conversation.updated` event describes it. */
  update(event) {
    const row = this.querySelector(`[data-id="${event.conversation}"]`);
    const isOfProject = this.dataset.project === undefined || this.dataset.project === event.project;
    const isOfArchive = this.dataset.page === "archive";
    const belongs = !event.deleted && (event.archived ?? false) === isOfArchive && isOfProject;
    if (row === null) {
      if (belongs) this.#reloadSoon();
      return;
    }
    if (!belongs) {
      row.remove();
      removeEmptyLists(this);
      this.#selected();
      if (this.#boxes.length === 0) this.#reloadSoon();
      return;
    }
    row.querySelector(".chats-title").textContent = event.title;
    if ((event.pinned ?? false) !== row.hasAttribute("data-pinned")) this.#reloadSoon();
  }

  /** A project was renamed, deleted or restored: fetch the list anew. */
  projectUpdated() {
    this.#reloadSoon();
  }

  /** A change of the selected rows has been made. */
  deselect() {
    for (const box of this.#checked) box.checked = false;
    this.#selected();
  }

  /** Replace the list by that of a fetched page, unless it is being changed. `isDeleted(id)`. */
  replaceWith(page, isDeleted = () => false) {
    const fetched = page.querySelector("chat-list");
    const isInUse = this.#checked.length > 0 || this.querySelector("[data-renaming]") !== null;
    if (fetched === null || isInUse) return;
    for (const row of fetched.querySelectorAll("[data-id]")) if (isDeleted(row.dataset.id)) row.remove();
    removeEmptyLists(fetched);
    if (this.textContent !== fetched.textContent) this.replaceChildren(...fetched.childNodes);
    this.#selected();
  }

  // --- Internal

  get #boxes() {
    return [...this.querySelectorAll("input[name=chat]")];
  }

  get #checked() {
    return this.#boxes.filter((box) => box.checked);
  }

  async #reload() {
    const { page } = await fetchPage(location.href);
    if (page !== null && this.isConnected) this.replaceWith(page);
  }

  #clicked(event) {
    const box = event.target.closest("input[name=chat]");
    if (box === null) return;
    const boxes = this.#boxes;
    if (event.shiftKey && this.#last?.isConnected) {
      const [from, to] = [boxes.indexOf(this.#last), boxes.indexOf(box)].sort((a, b) => a - b);
      for (const each of boxes.slice(from, to + 1)) each.checked = box.checked;
    }
    this.#last = box;
  }

  #selectAll(isChecked) {
    for (const box of this.#boxes) box.checked = isChecked;
  }

  #selected() {
    const all = this.querySelector("[data-select-all]");
    if (all === null) return;
    const [count, total] = [this.#checked.length, this.#boxes.length];
    all.checked = count > 0 && count === total;
    all.indeterminate = count > 0 && count < total;
    const label = this.querySelector("[data-count]");
    label.textContent = count > 0 ? `${label.dataset.some} ${count}` : label.dataset.none;
    for (const button of this.querySelectorAll("[data-bulk]")) button.disabled = count === 0;
  }
}
