import assert from "node:assert/strict";
import { after, before, beforeEach, test } from "node:test";

import { StreamWriter } from "../../static/js/models/stream_writer.js";

/** The part of an element that the writer uses. */
class FakeElement {
  children = [];
  parent = null;

  constructor(tag = "div", text = "") {
    this.tagName = tag.toUpperCase();
    if (text) this.append(text);
  }

  /** The flat elements of a block: `<p>one</p><p>two</p>`, or a list of one item. */
  set innerHTML(html) {
    const list = /^<ul>(.*)<\/ul>$/.exec(html);
    const found = [...(list?.[1] ?? html).matchAll(/<(\w+)>([^<]*)<\/\w+>/g)];
    const elements = found.map(([, tag, text]) => new FakeElement(tag, text));
    if (list !== null) {
      this.content = new FakeElement();
      const made = new FakeElement("ul");
      made.append(...elements);
      elements.splice(0, elements.length, made);
    }
    this.content = new FakeElement();
    this.content.append(...elements);
  }

  append(...children) {
    for (const child of children) {
      child.remove?.();
      this.children.push(child);
      if (typeof child !== "string") child.parent = this;
    }
  }

  before(...elements) {
    for (const element of elements) {
      element.remove();
      element.parent = this.parent;
      this.parent.children.splice(this.parent.children.indexOf(this), 0, element);
    }
  }

  remove() {
    if (this.parent === null) return;
    this.parent.children.splice(this.parent.children.indexOf(this), 1);
    this.parent = null;
  }

  get previousElementSibling() {
    return this.parent.children[this.parent.children.indexOf(this) - 1] ?? null;
  }

  matches(selector) {
    return selector.split(", ").includes(this.tagName.toLowerCase());
  }

  closest(selector) {
    return this.matches(selector) ? this : (this.parent?.closest(selector) ?? null);
  }

  setAttribute(name, value) {
    this[name] = value;
  }

  replaceChildren() {
    this.children = [];
  }

  hasChildNodes() {
    return this.children.length > 0;
  }

  get textContent() {
    return this.children.map((child) => child.textContent ?? child).join("");
  }

  set textContent(text) {
    this.children = [text];
  }
}

class FakeText {
  textContent = "";

  appendData(text) {
    this.textContent += text;
  }
}

let stream;
let reasoning;
let writer;

before(() => {
  globalThis.document = {
    createElement: (tag) => new FakeElement(tag),
    createTextNode: () => new FakeText(),
  };
});

after(() => {
  delete globalThis.document;
});

beforeEach(() => {
  stream = new FakeElement();
  reasoning = new FakeElement();
  writer = new StreamWriter(stream, reasoning);
});

const tail = () => stream.children.at(-1);
const shown = () => [...stream.children.slice(0, -1), ...tail().children].map((block) => block.textContent);
const blocks = (first, end, ...html) => writer.addBlocks({ first, end, blocks: html });

test("written text is in the page after a flush, in paragraphs", () => {
  writer.write("one\n");
  writer.write("\ntwo");
  writer.writeReasoning("hm");
  assert.deepEqual(shown(), []);
  writer.flush();
  assert.deepEqual(shown(), ["one", "two"]);
  assert.equal(reasoning.textContent, "hm");
  assert.equal(writer.hasText, true);
  assert.equal(writer.hasReasoning, true);
});

test("replacing the reply by the same text changes nothing, flushed or not", () => {
  writer.write("one\n\ntwo");
  writer.flush();
  const [first, second] = tail().children;
  writer.write(" and more");
  assert.equal(writer.replaceWith("one\n\ntwo and more", ""), false);
  writer.flush();
  assert.deepEqual(shown(), ["one", "two and more"]);
  assert.deepEqual(tail().children, [first, second]);
});

test("replacing the reply by nothing clears the page and the pending pieces", () => {
  writer.write("one\n\ntwo");
  writer.writeReasoning("hm");
  writer.flush();
  writer.write(" queued");
  writer.writeReasoning(" queued");
  assert.equal(writer.replaceWith("", ""), true);
  assert.deepEqual(shown(), []);
  writer.flush();
  assert.deepEqual(shown(), []);
  assert.equal(writer.hasText, false);
  assert.equal(writer.hasReasoning, false);

  writer.write("\n\nanew");
  writer.flush();
  assert.deepEqual(shown(), ["anew"]);
});

test("replacing the reply by a longer one adds the rest", () => {
  writer.write("one");
  writer.flush();
  const [first] = tail().children;
  assert.equal(writer.replaceWith("one two\n\nthree", "hm"), false);
  writer.flush();
  assert.deepEqual(shown(), ["one two", "three"]);
  assert.equal(tail().children[0], first);
  assert.equal(reasoning.textContent, "hm");
});

test("replacing the reply by a shorter or different one shows exactly that", () => {
  writer.write("one two three");
  writer.writeReasoning("hm");
  writer.flush();
  writer.write(" four");
  assert.equal(writer.replaceWith("one two", "hm"), true);
  writer.flush();
  assert.deepEqual(shown(), ["one two"]);
  assert.equal(reasoning.textContent, "hm");

  writer.write(" and on");
  writer.flush();
  assert.deepEqual(shown(), ["one two and on"]);
});

test("replacing an empty reply clears nothing", () => {
  assert.equal(writer.replaceWith("", ""), false);
  assert.equal(writer.replaceWith("partial", ""), false);
  writer.flush();
  assert.deepEqual(shown(), ["partial"]);
});

test("text that turns out to be reasoning moves there", () => {
  writer.write("plan");
  writer.flush();
  writer.write("\n");
  assert.equal(writer.replaceWith("", "plan"), true);
  writer.write("Answer");
  writer.flush();
  assert.deepEqual(shown(), ["Answer"]);
  assert.equal(reasoning.textContent, "plan");
});

test("a block takes the place of its text", () => {
  writer.write("**one**\n\ntw");
  writer.flush();
  blocks(0, 9, "<p>one</p>");
  writer.write("o");
  assert.equal(writer.hasNewBlocks, true);
  assert.deepEqual(writer.flush().map((element) => element.textContent), ["one"]);
  assert.deepEqual(shown(), ["one", "two"]);
  const [first] = stream.children;
  blocks(1, 12, "<p>two</p>");
  writer.flush();
  assert.deepEqual(shown(), ["one", "two"]);
  assert.equal(stream.children[0], first);
  writer.close();
  assert.deepEqual(stream.children.map((element) => element.tagName), ["P", "P"]);
});

test("an item joins the list before it, and a block of none of its own stays empty", () => {
  writer.write("- a\n- b\n\n[x]: y\n\nc");
  blocks(0, 4, "<ul><li>a</li></ul>");
  blocks(1, 9, "<li>b</li>", "");
  blocks(3, 18, "<p>c</p>");
  writer.flush();
  assert.deepEqual(stream.children.map((element) => element.tagName), ["UL", "P", "DIV"]);
  assert.deepEqual(stream.children[0].children.map((item) => item.textContent), ["a", "b"]);
});

test("a block that is replaced leaves the later ones in their places", () => {
  writer.write("x");
  blocks(0, 1, "<ul><li>a</li></ul>", "<li>b</li>", "<p>c</p>", "", "<p>d</p>");
  writer.flush();
  blocks(0, 1, "<ul><li>A</li></ul>");
  blocks(2, 1, "");
  blocks(3, 1, "<p>D</p>");
  writer.flush();
  assert.deepEqual(stream.children.map((element) => element.textContent), ["Ab", "D", "d", ""]);
  blocks(2, 1, "<p>C</p>");
  writer.flush();
  assert.deepEqual(stream.children.map((element) => element.textContent), ["Ab", "C", "D", "d", ""]);
});

test("a later attempt's block with the same HTML stays as it is", () => {
  writer.write("one");
  blocks(0, 3, "<p>one</p>");
  writer.flush();
  const [first] = stream.children;
  assert.equal(writer.replaceWith("one", ""), false);
  blocks(0, 3, "<p>one</p>");
  assert.deepEqual(writer.flush(), []);
  assert.equal(stream.children[0], first);
  assert.equal(writer.replaceWith("other", ""), true);
  writer.flush();
  assert.deepEqual(shown(), ["other"]);
});

test("blocks wait while the text that they replace is held", () => {
  let isHeld = true;
  writer = new StreamWriter(stream, reasoning, () => isHeld);
  stream.children.shift();
  writer.write("one");
  blocks(0, 3, "<p>One</p>");
  writer.flush();
  assert.deepEqual(shown(), ["one"]);
  isHeld = false;
  writer.flush();
  assert.deepEqual(shown(), ["One"]);
});

test("code and items are shown as such before they are formatted", () => {
  writer.write("```");
  writer.flush();
  assert.equal(tail().children[0].tagName, "P");
  writer.write("py\na = 1\n");
  writer.flush();
  const [figure] = tail().children;
  assert.equal(figure.tagName, "FIGURE");
  assert.deepEqual(figure.children.map((child) => child.textContent), ["py", "a = 1"]);
  writer.write("\nb\n``");
  writer.flush();
  assert.equal(figure.children[1].textContent, "a = 1\n\nb");
  blocks(0, 19, "<figure>…</figure>");
  writer.write("`\n3. it");
  writer.flush();
  const [list] = tail().children;
  assert.deepEqual([list.tagName, list.start, list.textContent], ["OL", "3", "it"]);
});
