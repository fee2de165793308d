// The texts of replies as the model wrote them, in Markdown; pages have their HTML alone.

export class ReplySources {
  #fetch;
  #texts = new Map(); // by the id of the run: the text, or a promise of it while it is fetched

  /** `fetch(run)` resolves to the text of a run, or to null if that fails. */
  constructor(fetch) {
    this.#fetch = fetch;
  }

  /** Keep the text of a run that has ended. */
  put(run, text) {
    this.#texts.set(run, text);
  }

  /** The text of a run, or a promise of it (of null if it cannot be fetched). */
  get(run) {
    if (!this.#texts.has(run)) this.#texts.set(run, this.#load(run));
    return this.#texts.get(run);
  }

  async #load(run) {
    const text = await this.#fetch(run);
    if (text === null) this.#texts.delete(run); // the next call tries again
    else this.#texts.set(run, text);
    return text;
  }
}
