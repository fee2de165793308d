// The text that is typed and not sent, per page, in the tab's storage.

/** The page of a composer's draft, by its data attributes. */
export function pageOf({ conversation, edit }) {
  return edit ? `edit:${edit}` : conversation || "new";
}

export class Draft {
  #storage;
  #key;

  constructor(storage, page) {
    this.#storage = storage;
    this.page = page;
  }

  /** The page of the draft; a new chat's draft moves when the chat gets its address. */
  set page(page) {
    this.#key = `draft:${page}`;
  }

  get text() {
    return this.#storage.getItem(this.#key) ?? "";
  }

  set text(text) {
    if (text.trim()) this.#storage.setItem(this.#key, text);
    else this.#storage.removeItem(this.#key);
  }

  /** The browser submits the form: remember the draft that it carries. */
  submitted() {
    this.#storage.setItem(SUBMITTED, this.#key);
  }

  /** The server has accepted the form of `submitted`: discard its draft. */
  static arrived(storage) {
    const key = storage.getItem(SUBMITTED);
    if (key !== null) storage.removeItem(key);
    if (key !== null) storage.removeItem(key.replace(/^draft:/, "files:")); // models/known_files.js
    storage.removeItem(SUBMITTED);
  }
}

const SUBMITTED = "submitted";
