// The end of a streaming reply, which is not formatted yet: plain text, but in a box if it is code, and in a
// list if it is an item, so that it does not move when its formatted block takes its place.

import { Paragraphs } from "../helpers/paragraphs.js";

const CODE = /^\s*? {0,3}(`{3,}|~{3,})([^\n`]*)\n/;
const ITEM = /^\n* {0,3}([-*+]|(\d{1,9})[.)])[ \t]+(?=\S)/;
const CLOSING = /\n {0,3}(`+|~+)?[ \t]*\n?$/; // perhaps the end of the code, which is not a part of it
const UNDECIDED = 100; // characters, after which the kind of a text is certain

export class Tail {
  element;
  #paragraphs = new Paragraphs();
  #kind = null;
  #read = 0; // characters of the text that are in the page, or belong to its marks
  #last = null; // the text node that grows

  /** Adds an element to the end of `stream`. */
  constructor(stream) {
    this.element = document.createElement("div");
    this.element.className = "stream-tail";
    stream.append(this.element);
  }

  get hasText() {
    return this.#last !== null;
  }

  clear() {
    this.element.replaceChildren();
    this.#paragraphs = new Paragraphs();
    this.#kind = null;
    this.#read = 0;
    this.#last = null;
  }

  /** Show a text that begins with the one that is shown. */
  show(text) {
    if (this.#read < UNDECIDED) this.#setKind(text);
    const end = this.#kind === "code" ? endOfCode(text, this.#read) : text.length;
    const added = text.slice(this.#read, end);
    if (added === "") return;
    this.#read = end;
    if (this.#kind === "code" || this.#kind === "item") this.#last.appendData(added);
    else this.#write(added);
  }

  #setKind(text) {
    const code = CODE.exec(text);
    const item = code === null ? ITEM.exec(text) : null;
    const kind = code ? "code" : item ? "item" : "text";
    if (kind === this.#kind) return;
    this.clear();
    this.#kind = kind;
    if (code) this.#beginCode(code[2].trim());
    if (item) this.#beginItem(item[2]);
    this.#read = (code ?? item)?.[0].length ?? 0;
  }

  #beginCode(caption) {
    const figure = element("figure", "code");
    figure.dir = "ltr";
    const label = element("figcaption");
    label.textContent = caption;
    const pre = element("pre");
    const code = element("code");
    this.#last = document.createTextNode("");
    code.append(this.#last);
    pre.append(code);
    figure.append(label, pre);
    this.element.append(figure);
  }

  #beginItem(number) {
    const list = element(number === undefined ? "ul" : "ol");
    if (number !== undefined) list.setAttribute("start", number);
    const item = element("li");
    item.dir = "auto";
    this.#last = document.createTextNode("");
    item.append(this.#last);
    list.append(item);
    this.element.append(list);
  }

  #write(text) {
    for (const { text: added, begins } of this.#paragraphs.push(text)) {
      if (begins) {
        const paragraph = element("p");
        paragraph.dir = "auto";
        this.#last = document.createTextNode("");
        paragraph.append(this.#last);
        this.element.append(paragraph);
      }
      this.#last.appendData(added);
    }
  }
}

function element(name, className = "") {
  const made = document.createElement(name);
  if (className) made.className = className;
  return made;
}

function endOfCode(text, from) {
  const found = CLOSING.exec(text.slice(Math.max(from - 1, text.length - 200)));
  return found === null ? text.length : Math.max(from, text.length - found[0].length);
}
