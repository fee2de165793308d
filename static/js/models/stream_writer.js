// Writes a reply's text as it comes: text nodes only, one change of the page per frame, and work
// for what is new, not for what is there.

import { Paragraphs } from "../helpers/paragraphs.js";

export class StreamWriter {
  #stream;
  #reasoning;
  #paragraphs = new Paragraphs();
  #text = []; // what `flush` has not put into the page yet
  #thoughts = [];
  #wholeText = ""; // what there is, in the page or not
  #wholeThoughts = "";
  #last = null;

  /** `stream` gets paragraphs of text, `reasoning` (an element) the thoughts. */
  constructor(stream, reasoning) {
    this.#stream = stream;
    this.#reasoning = reasoning;
  }

  write(text) {
    this.#text.push(text);
    this.#wholeText += text;
  }

  think(text) {
    this.#thoughts.push(text);
    this.#wholeThoughts += text;
  }

  /**
   * Let the reply be exactly this. What is in the page stays as far as it goes on from there;
   * otherwise it is taken away at once. Returns whether it was.
   */
  become(text, thoughts) {
    const goesOn = text.startsWith(this.#wholeText) && thoughts.startsWith(this.#wholeThoughts);
    if (!goesOn) this.#clear();
    this.write(text.slice(this.#wholeText.length));
    this.think(thoughts.slice(this.#wholeThoughts.length));
    return !goesOn;
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
    const thoughts = this.#thoughts.join("");
    if (thoughts) this.#reasoning.append(thoughts);
    this.#thoughts = [];
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

  #clear() {
    this.#stream.replaceChildren();
    this.#reasoning.replaceChildren();
    this.#paragraphs = new Paragraphs();
    this.#text = [];
    this.#thoughts = [];
    this.#wholeText = "";
    this.#wholeThoughts = "";
    this.#last = null;
  }
}
