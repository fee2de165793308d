import assert from "node:assert/strict";
import { after, before, beforeEach, test } from "node:test";

import { StreamWriter } from "../../static/js/models/stream_writer.js";

/** As much of an element as the writer uses. */
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

test("what is written is in the page after a flush, in paragraphs", () => {
  writer.write("one\n");
  writer.write("\ntwo");
  writer.think("hm");
  assert.deepEqual(shown(), []);
  writer.flush();
  assert.deepEqual(shown(), ["one", "two"]);
  assert.equal(reasoning.textContent, "hm");
  assert.equal(writer.hasText, true);
  assert.equal(writer.hasThoughts, true);
});

test("becoming what it is changes nothing, whether it is in the page or still queued", () => {
  writer.write("one\n\ntwo");
  writer.flush();
  const [first, second] = stream.children;
  writer.write(" and more");
  assert.equal(writer.become("one\n\ntwo and more", ""), false);
  writer.flush();
  assert.deepEqual(shown(), ["one", "two and more"]);
  assert.deepEqual(stream.children, [first, second]);
});

test("becoming nothing takes away what is in the page and what is queued", () => {
  writer.write("one\n\ntwo");
  writer.think("hm");
  writer.flush();
  writer.write(" queued");
  writer.think(" queued");
  assert.equal(writer.become("", ""), true);
  assert.deepEqual(shown(), []);
  writer.flush();
  assert.deepEqual(shown(), []);
  assert.equal(writer.hasText, false);
  assert.equal(writer.hasThoughts, false);

  writer.write("\n\nanew");
  writer.flush();
  assert.deepEqual(shown(), ["anew"]);
});

test("becoming more adds what is new", () => {
  writer.write("one");
  writer.flush();
  const [first] = stream.children;
  assert.equal(writer.become("one two\n\nthree", "hm"), false);
  writer.flush();
  assert.deepEqual(shown(), ["one two", "three"]);
  assert.equal(stream.children[0], first);
  assert.equal(reasoning.textContent, "hm");
});

test("becoming less, or something else, shows exactly that", () => {
  writer.write("one two three");
  writer.think("hm");
  writer.flush();
  writer.write(" four");
  assert.equal(writer.become("one two", "hm"), true);
  writer.flush();
  assert.deepEqual(shown(), ["one two"]);
  assert.equal(reasoning.textContent, "hm");

  writer.write(" and on");
  writer.flush();
  assert.deepEqual(shown(), ["one two and on"]);
});

test("becoming nothing from nothing takes nothing away", () => {
  assert.equal(writer.become("", ""), false);
  assert.equal(writer.become("partial", ""), false);
  writer.flush();
  assert.deepEqual(shown(), ["partial"]);
});
