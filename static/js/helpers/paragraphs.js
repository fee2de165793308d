/**
 * Cuts streaming text at blank lines, wherever its pieces were cut: what each piece adds to the last
 * paragraph, and which paragraphs it begins. So the page lays out one paragraph again, not the
 * whole reply, and a finished reply stands where the streaming one stood.
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
