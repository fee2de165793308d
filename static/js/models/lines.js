import { formatLine } from "../helpers/thoughts.js";

/**
 * Adds text that streams in to the end of an element, a block for each line: the browser lays out the last line
 * again, and never the whole text.
 */
export class Lines {
  #element;
  #last = null; // the text node that grows
  #isCode = false; // after a fence

  constructor(element) {
    this.#element = element;
  }

  push(text) {
    text.split("\n").forEach((part, index) => {
      if (index > 0) this.#isCode = formatLine(this.#last.parentElement, this.#isCode);
      if (index > 0 || this.#last === null) this.#begin();
      if (part !== "") this.#last.appendData(part);
    });
  }

  #begin() {
    const line = document.createElement("div");
    this.#last = document.createTextNode("");
    line.append(this.#last);
    this.#element.append(line);
  }
}
