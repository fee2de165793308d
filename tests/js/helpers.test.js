import assert from "node:assert/strict";
import { mock, test } from "node:test";

import { newClientId } from "../../static/js/helpers/ids.js";
import { Paragraphs } from "../../static/js/helpers/paragraphs.js";
import { formatThoughts } from "../../static/js/helpers/thoughts.js";
import { backoff, countDown, debounce } from "../../static/js/helpers/timing.js";
import { about, fileSize, queueStatus, remaining, retryLabel } from "../../static/js/helpers/words.js";

test("a wait is shown with its unit, rounded to five seconds or a minute", () => {
  assert.deepEqual([0.2, 4.4, 8, 22, 57, 58, 89, 91, 200].map(about), [
    "about 5 s",
    "about 5 s",
    "about 10 s",
    "about 20 s",
    "about 55 s",
    "about 1 min",
    "about 1 min",
    "about 2 min",
    "about 3 min",
  ]);
});

test("the status of a queued run has its queue position and, if known, the wait", () => {
  assert.equal(queueStatus(0), "Starting…");
  assert.equal(queueStatus(0, 12), "Starting…");
  assert.equal(queueStatus(1), "Queued, next in line");
  assert.equal(queueStatus(2), "Queued, 2nd in line");
  assert.equal(queueStatus(3, 4), "Queued, 3rd in line, about 5 s");
  assert.equal(queueStatus(4, 21.3), "Queued, 4th in line, about 20 s");
  assert.equal(queueStatus(11), "Queued, 11th in line");
  assert.equal(queueStatus(21), "Queued, 21st in line");
  assert.equal(queueStatus(1_235), "Queued, 1,235th in line");
  assert.equal(queueStatus(1, 9, true), "Queued behind your other replies, about 10 s");
  assert.equal(
    queueStatus(2, null, true),
    "Queued behind your other replies, 1 message ahead",
  );
  assert.equal(
    queueStatus(3, 9, true),
    "Queued behind your other replies, 2 messages ahead, about 10 s",
  );
  assert.equal(queueStatus(2, null, false, true), "The model is busy: 2nd in line");
});

test("a disabled retry button shows the remaining time", () => {
  assert.deepEqual([5, 119, 120, 0].map(retryLabel), [
    "Try again in 5 s",
    "Try again in 119 s",
    "Try again in 2 min",
    "Try again",
  ]);
});

test("a countdown shows each second once, and 0 last", () => {
  mock.timers.enable({ apis: ["setTimeout", "Date"] });
  const seconds = [];
  countDown(2.5, (left) => seconds.push(left));
  for (let second = 0; second < 9; second += 1) mock.timers.tick(1_000);
  assert.deepEqual(seconds, [3, 2, 1, 0]);
  mock.timers.reset();
});

test("a cancelled countdown stops", () => {
  mock.timers.enable({ apis: ["setTimeout", "Date"] });
  const seconds = [];
  countDown(5, (left) => seconds.push(left)).cancel();
  mock.timers.tick(10_000);
  assert.deepEqual(seconds, [5]);
  mock.timers.reset();
});

test("the count of characters is shown only near the maximum", () => {
  assert.equal(remaining(17_999, 20_000), "");
  assert.equal(remaining(18_500, 20_000), "1,500 characters left");
  assert.equal(remaining(20_000, 20_000), "0 characters left");
  assert.equal(remaining(21_234, 20_000), "1,234 characters over the limit");
});

test("backoff is spread between half of the delay and all of it", () => {
  assert.equal(backoff(0, () => 0), 500);
  assert.equal(backoff(0, () => 1), 1_000);
  assert.equal(backoff(50, () => 1), 30_000);
});

test("a debounced action runs once after the delay, or at once when flushed", () => {
  mock.timers.enable({ apis: ["setTimeout"] });
  let runs = 0;
  const action = debounce(() => {
    runs += 1;
  }, 300);
  action();
  action();
  mock.timers.tick(299);
  assert.equal(runs, 0);
  mock.timers.tick(1);
  assert.equal(runs, 1);
  action();
  action.flush();
  action.flush();
  assert.equal(runs, 2);
  action();
  action.cancel();
  mock.timers.tick(300);
  assert.equal(runs, 2);
  mock.timers.reset();
});

test("client ids have the form that the server accepts, and differ", () => {
  const id = newClientId();
  assert.match(id, /^[A-Za-z0-9._:-]{1,64}$/);
  assert.notEqual(id, newClientId());
});

/** The paragraphs that a page shows after these pieces. */
function shown(...pieces) {
  const paragraphs = new Paragraphs();
  const page = [];
  for (const piece of pieces) {
    for (const { text, begins } of paragraphs.push(piece)) {
      if (begins) page.push(text);
      else page[page.length - 1] += text;
    }
  }
  return page;
}

test("text is split at blank lines", () => {
  assert.deepEqual(shown("one\n\ntwo\nstill two\n\n\n\nthree"), [
    "one",
    "two\nstill two",
    "three",
  ]);
});

test("paragraphs do not depend on the cuts between pieces", () => {
  const text = "\n\none\n\ntwo\nstill two \n\n\nthree\n";
  const whole = shown(text);
  for (let cut = 0; cut <= text.length; cut += 1) {
    for (let second = cut; second <= text.length; second += 1) {
      const pieces = [text.slice(0, cut), text.slice(cut, second), text.slice(second)];
      assert.deepEqual(shown(...pieces), whole, JSON.stringify(pieces));
    }
  }
  assert.deepEqual(shown(...text), whole);
});

test("no text is lost except the blank lines between paragraphs", () => {
  const text = "a\n b\n\nc\td\n\n\ne  f";
  assert.equal(shown(...text).join("\n\n"), text.replace(/\n{3,}/g, "\n\n"));
});

test("the size of a file has the unit in which it is short", () => {
  assert.deepEqual([0, 1, 340_400, 999_600, 2_449_000, 999_960_000, 12_340_000_000].map(fileSize), [
    "0 kB",
    "1 kB",
    "340 kB",
    "1 MB",
    "2.4 MB",
    "1 GB",
    "12.3 GB",
  ]);
});

test("reasoning is formatted line by line", () => {
  class Element {
    constructor(name) {
      Object.assign(this, { name, dataset: {}, nodes: [], style: { setProperty() {} } });
    }
    set textContent(text) {
      this.nodes = [text];
    }
    get textContent() {
      return this.nodes.map((node) => node.textContent ?? node).join("");
    }
    get children() {
      return this.nodes.filter((node) => node instanceof Element);
    }
    replaceChildren(...nodes) {
      this.nodes = nodes;
    }
    get shown() {
      return this.nodes.map((node) => (node instanceof Element ? `<${node.name}>${node.shown}</>` : node)).join("");
    }
  }
  globalThis.document = { createElement: (name) => new Element(name) };
  try {
    const element = new Element("div");
    element.textContent = "## Plan\n- use `a*b*` and **both**\n2 * 3 * 4, *so*\n```py\n# **no** heading\n```\n**Done";
    formatThoughts(element);
    const lines = () => element.children.map((line) => [line.dataset.thought, line.shown]);
    const expected = [
      ["heading", "Plan"],
      ["item", "use <code>a*b*</> and <strong>both</>"],
      ["", "2 * 3 * 4, <em>so</>"],
      ["fence", "```py"],
      ["code", "# **no** heading"],
      ["fence", "```"],
      ["", "**Done"],
    ];
    assert.deepEqual(lines(), expected);
    formatThoughts(element); // again
    assert.deepEqual(lines(), expected);
  } finally {
    delete globalThis.document;
  }
});
