import assert from "node:assert/strict";
import { after, before, beforeEach, test } from "node:test";

import { StreamWriter } from "../../static/js/models/stream_writer.js";

/** The part of an element that the writer uses. */
class FakeElement {
  children = [];

  append(...children) {
    this.children.push(...children);
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
    createElement: () => new FakeElement(),
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

const shown = () => stream.children.map((paragraph) => paragraph.textContent);

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
  const [first, second] = stream.children;
  writer.write(" and more");
  assert.equal(writer.replaceWith("one\n\ntwo and more", ""), false);
  writer.flush();
  assert.deepEqual(shown(), ["one", "two and more"]);
  assert.deepEqual(stream.children, [first, second]);
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
  const [first] = stream.children;
  assert.equal(writer.replaceWith("one two\n\nthree", "hm"), false);
  writer.flush();
  assert.deepEqual(shown(), ["one two", "three"]);
  assert.equal(stream.children[0], first);
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
