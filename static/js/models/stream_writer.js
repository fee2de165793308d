// Writes the text of a reply as it streams in: text nodes only, one change of the page per frame, and
// work in proportion to the new text, not to the whole reply.

import { Paragraphs } from "../helpers/paragraphs.js";

export class StreamWriter {
  #stream;
  #reasoningElement;
  #paragraphs = new Paragraphs();
  #text = []; // pieces that `flush` has not put into the page yet
  #reasoning = [];
  #wholeText = ""; // all text, in the page or not
  #wholeReasoning = "";
  #last = null;

  /** `stream` gets paragraphs of text, `reasoning` (an element) the reasoning. */
  constructor(stream, reasoning) {
    this.#stream = stream;
    this.#reasoningElement = reasoning;
  }

  write(text) {
    this.#text.push(text);
    this.#wholeText += text;
  }

  writeReasoning(text) {
    this.#reasoning.push(text);
    this.#wholeReasoning += text;
  }

  /**
   * Replace the reply. If it continues the text so far, only the rest is added; otherwise the page is
   * cleared at once. Returns whether it was cleared.
   */
  replaceWith(text, reasoning) {
    const isLonger = text.startsWith(this.#wholeText) && reasoning.startsWith(this.#wholeReasoning);
    if (!isLonger) this.#clear();
    this.write(text.slice(this.#wholeText.length));
    this.writeReasoning(reasoning.slice(this.#wholeReasoning.length));
    return !isLonger;
  }

  /** Write the part of the whole text that is not written yet. */
  complete(text) {
    if (text.startsWith(this.#wholeText)) this.write(text.slice(this.#wholeText.length));
  }

  /** Whether the page shows text of the reply. */
  get hasText() {
    return this.#last !== null;
  }

  get hasReasoning() {
    return this.#reasoningElement.hasChildNodes();
  }

  /** Put the pending pieces into the page. */
  flush() {
    const reasoning = this.#reasoning.join("");
    if (reasoning) this.#reasoningElement.append(reasoning);
    this.#reasoning = [];
    if (!this.#text.length) return;
    for (const { text, begins } of this.#paragraphs.push(this.#text.join(""))) {
      if (begins) {
        const paragraph = document.createElement("p");
        paragraph.dir = "auto";
        this.#last = document.createTextNode("");
        paragraph.append(this.#last);
        this.#stream.append(paragraph);
      }
      this.#last.appendData(text);
    }
    this.#text = [];
  }

  #clear() {
    this.#stream.replaceChildren();
    this.#reasoningElement.replaceChildren();
    this.#paragraphs = new Paragraphs();
    this.#text = [];
    this.#reasoning = [];
    this.#wholeText = "";
    this.#wholeReasoning = "";
    this.#last = null;
  }
}
