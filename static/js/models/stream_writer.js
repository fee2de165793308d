// Writes a reply's text as it comes: text nodes only, one change of the page per frame, and work
// for what is new, not for what is there.

import { Paragraphs } from "../helpers/paragraphs.js";

export class StreamWriter {
  #stream;
  #reasoning;
  #paragraphs = new Paragraphs();
  #text = [];
  #thoughts = [];
  #last = null;

  /** `stream` gets paragraphs of text, `reasoning` (an element) the thoughts. */
  constructor(stream, reasoning) {
    this.#stream = stream;
    this.#reasoning = reasoning;
  }

  write(text) {
    this.#text.push(text);
  }

  think(text) {
    this.#thoughts.push(text);
  }

  /** Whether there is text of the reply itself. */
  get hasText() {
    return this.#last !== null;
  }

  get hasThoughts() {
    return this.#reasoning.hasChildNodes();
  }

  /** Put what was written into the page. */
  flush() {
    if (this.#thoughts.length) {
      this.#reasoning.append(this.#thoughts.join(""));
      this.#thoughts = [];
    }
    if (!this.#text.length) return;
    for (const { text, begins } of this.#paragraphs.push(this.#text.join(""))) {
      if (begins) {
        const paragraph = document.createElement("p");
        this.#last = document.createTextNode("");
        paragraph.append(this.#last);
        this.#stream.append(paragraph);
      }
      this.#last.appendData(text);
    }
    this.#text = [];
  }
}
