// The files that were uploaded in this tab, by their ids: an unsent message names them by id alone.

const KEY = "files";
const MOST = 60;

export class KnownFiles {
  #storage;

  constructor(storage) {
    this.#storage = storage;
  }

  /** Remember a file: {id, kind, name, size, tokens, thumbnail}. */
  put(file) {
    const others = this.#read().filter(({ id }) => id !== file.id);
    this.#storage.setItem(KEY, JSON.stringify([...others, file].slice(-MOST)));
  }

  /** The files with these ids, in their order, without unknown ones. */
  find(ids) {
    const known = new Map(this.#read().map((file) => [file.id, file]));
    return ids.filter((id) => known.has(id)).map((id) => known.get(id));
  }

  /** The files of a page's unsent message. */
  ofPage(page) {
    return this.find(JSON.parse(this.#storage.getItem(`${KEY}:${page}`) ?? "[]"));
  }

  /** Remember the files of a page's unsent message. */
  keep(page, ids) {
    if (ids.length > 0) this.#storage.setItem(`${KEY}:${page}`, JSON.stringify(ids));
    else this.#storage.removeItem(`${KEY}:${page}`);
  }

  #read() {
    return JSON.parse(this.#storage.getItem(KEY) ?? "[]");
  }
}
