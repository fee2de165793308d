/**
 * Splits streaming text into paragraphs at blank lines, however the stream was cut into pieces. For
 * each piece it returns the text to add and where a new paragraph begins, so that the browser lays
 * out one paragraph again, not the whole reply. The text does not move when the finished reply
 * replaces it.
 */
export class Paragraphs {
  #newlines = "";
  #begun = false;

  /** @returns {{text: string, begins: boolean}[]} in order; `begins`: a new paragraph. */
  push(text) {
    const whole = this.#newlines + text;
    const end = whole.length - whole.match(/\n*$/)[0].length;
    this.#newlines = whole.slice(end);
    const added = [];
    const parts = whole.slice(0, end).split(/\n{2,}/);
    parts.forEach((part, index) => {
      if (part === "") return;
      const begins = index > 0 || !this.#begun;
      this.#begun = true;
      added.push({ text: part, begins });
    });
    return added;
  }
}
