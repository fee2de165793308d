// Writes a reply as it streams in: the blocks that the server has formatted, and after them the rest of the
// text as it is. One change of the page per frame, and work in proportion to the new text alone.

import { Lines } from "./lines.js";
import { Tail } from "./tail.js";

export class StreamWriter {
  #stream;
  #reasoningElement;
  #isHeld;
  #tail;
  #blocks = []; // {html, nodes} of each block in the page
  #arrived = []; // events with blocks that are not in the page yet
  #end = 0; // the length of the text that the blocks in the page show
  #reasoning = [];
  #lines; // of the reasoning
  #wholeText = "";
  #wholeReasoning = "";

  /**
   * `stream` gets the reply, `reasoning` (an element) the reasoning. While `isHeld(element)` is true the
   * element stays in the page as it is: text in it is selected.
   */
  constructor(stream, reasoning, isHeld = () => false) {
    this.#stream = stream;
    this.#reasoningElement = reasoning;
    this.#isHeld = isHeld;
    this.#tail = new Tail(stream);
    this.#lines = new Lines(reasoning);
  }

  write(text) {
    this.#wholeText += text;
  }

  writeReasoning(text) {
    this.#reasoning.push(text);
    this.#wholeReasoning += text;
  }

  /** Add the blocks of a `reply.blocks` event. */
  addBlocks(event) {
    this.#arrived.push(event);
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

  get text() {
    return this.#wholeText;
  }

  /** Whether the page shows text of the reply. */
  get hasText() {
    return this.#blocks.length > 0 || this.#tail.hasText;
  }

  get hasReasoning() {
    return this.#reasoningElement.hasChildNodes();
  }

  /** Whether the next `flush` puts formatted blocks into the page. */
  get hasNewBlocks() {
    return this.#arrived.length > 0 && !this.#isHeld(this.#tail.element);
  }

  /** Put all that has arrived into the page. Returns the elements of new blocks. */
  flush() {
    const reasoning = this.#reasoning.join("");
    if (reasoning) this.#lines.push(reasoning);
    this.#reasoning = [];
    const added = [];
    if (this.hasNewBlocks) {
      for (const event of this.#arrived) added.push(...this.#place(event));
      this.#arrived = [];
      this.#tail.clear();
    }
    this.#tail.show(this.#wholeText.slice(this.#end));
    return added;
  }

  /** The reply is complete: remove the part for unformatted text. Call it when nothing has to be flushed. */
  close() {
    this.#tail.element.remove();
  }

  #place({ first, blocks, end }) {
    const added = [];
    blocks.forEach((html, index) => {
      const number = first + index;
      if (this.#blocks[number]?.html === html) return; // of the attempt before
      const elements = elementsOf(html);
      if (number < this.#blocks.length) this.#replace(this.#blocks[number], elements);
      else this.#append(elements);
      this.#blocks[number] = { html, nodes: elements.flatMap(contentOf) };
      added.push(...elements);
    });
    this.#end = Math.max(this.#end, end);
    return added;
  }

  #append(elements) {
    const last = this.#tail.element.previousElementSibling;
    for (const element of elements) {
      if (element.tagName === "LI") last.append(element);
      else if (element.tagName === "TR") last.querySelector("tbody").append(element);
      else this.#tail.element.before(element);
    }
  }

  /** Replace a block. Later items and rows stay in the list or the table that it has begun. */
  #replace(block, elements) {
    const next = elements.flatMap(contentOf);
    if (block.nodes.length > 0) block.nodes[0].before(...next);
    else this.#nodeAfter(block).before(...next);
    for (const node of block.nodes) node.remove();
  }

  #nodeAfter(block) {
    const later = this.#blocks.slice(this.#blocks.indexOf(block) + 1);
    const found = later.find(({ nodes }) => nodes.length > 0)?.nodes[0];
    return found?.closest(".table, ul, ol") ?? found ?? this.#tail.element;
  }

  #clear() {
    for (const { nodes } of this.#blocks) for (const node of nodes) node.remove();
    this.#stream.replaceChildren();
    this.#reasoningElement.replaceChildren();
    this.#tail = new Tail(this.#stream);
    this.#lines = new Lines(this.#reasoningElement);
    this.#blocks = [];
    this.#arrived = [];
    this.#end = 0;
    this.#reasoning = [];
    this.#wholeText = "";
    this.#wholeReasoning = "";
  }
}

/** The elements of a block. Trusts the HTML, which the server has sanitised. */
function elementsOf(html) {
  const template = document.createElement("template");
  template.innerHTML = html;
  return [...template.content.children];
}

/** The elements that are a block's own, where later blocks may be in its list or its table. */
function contentOf(element) {
  if (element.matches("ul, ol")) return [...element.children];
  if (element.matches(".table")) return [element.querySelector("thead")];
  return [element];
}
