import assert from "node:assert/strict";
import { mock, test } from "node:test";

import { newClientId } from "../../static/js/helpers/ids.js";
import { Paragraphs } from "../../static/js/helpers/paragraphs.js";
import { backoff, countDown, debounce } from "../../static/js/helpers/timing.js";
import { about, again, inLine, remaining } from "../../static/js/helpers/words.js";

test("waits are said with their unit, and no more exactly than they are known", () => {
  assert.deepEqual([0.2, 4.4, 8, 22, 57, 58, 89, 91, 200].map(about), [
    "about 5 seconds",
    "about 5 seconds",
    "about 10 seconds",
    "about 20 seconds",
    "about 55 seconds",
    "about a minute",
    "about a minute",
    "about 2 minutes",
    "about 3 minutes",
  ]);
});

test("a waiting run tells its place and how long it takes, as far as known", () => {
  assert.equal(inLine(0), "Starting the reply");
  assert.equal(inLine(0, 12), "Starting the reply");
  assert.equal(inLine(1), "Next in line");
  assert.equal(inLine(2), "1 other is before you");
  assert.equal(inLine(4, 21.3), "3 others are before you, about 20 seconds");
  assert.equal(inLine(1_235), "1,234 others are before you");
  assert.equal(inLine(1, 9, true), "Waiting for your other replies, about 10 seconds");
  assert.equal(
    inLine(2, null, true),
    "Waiting for your other replies; 1 of your messages is before this one",
  );
  assert.equal(
    inLine(3, null, true),
    "Waiting for your other replies; 2 of your messages are before this one",
  );
});

test("a button that waits says for how long", () => {
  assert.deepEqual([5, 119, 120, 0].map(again), [
    "Try again in 5 s",
    "Try again in 119 s",
    "Try again in 2 min",
    "Try again",
  ]);
});

test("a countdown tells each second once, the last with 0", () => {
  mock.timers.enable({ apis: ["setTimeout", "Date"] });
  const told = [];
  countDown(2.5, (left) => told.push(left));
  for (let second = 0; second < 9; second += 1) mock.timers.tick(1_000);
  assert.deepEqual(told, [3, 2, 1, 0]);
  mock.timers.reset();
});

test("a countdown that is cancelled tells nothing more", () => {
  mock.timers.enable({ apis: ["setTimeout", "Date"] });
  const told = [];
  countDown(5, (left) => told.push(left)).cancel();
  mock.timers.tick(10_000);
  assert.deepEqual(told, [5]);
  mock.timers.reset();
});

test("the count is told only near the longest message", () => {
  assert.equal(remaining(17_999, 20_000), "");
  assert.equal(remaining(18_500, 20_000), "1,500 characters left");
  assert.equal(remaining(20_000, 20_000), "0 characters left");
  assert.equal(remaining(21_234, 20_000), "1,234 characters too many");
});

test("waiting times are spread between half and the whole", () => {
  assert.equal(backoff(0, () => 0), 500);
  assert.equal(backoff(0, () => 1), 1_000);
  assert.equal(backoff(50, () => 1), 30_000);
});

test("a debounced action runs once, late, and at once when flushed", () => {
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

test("client ids are such as the server takes, and differ", () => {
  const id = newClientId();
  assert.match(id, /^[A-Za-z0-9._:-]{1,64}$/);
  assert.notEqual(id, newClientId());
});

/** What a page shows after these pieces: paragraphs, with what each holds. */
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

test("text is cut at blank lines", () => {
  assert.deepEqual(shown("one\n\ntwo\nstill two\n\n\n\nthree"), [
    "one",
    "two\nstill two",
    "three",
  ]);
});

test("paragraphs do not depend on how the text was cut into pieces", () => {
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

test("nothing of the text is lost but the blank lines between paragraphs", () => {
  const text = "a\n b\n\nc\td\n\n\ne  f";
  assert.equal(shown(...text).join("\n\n"), text.replace(/\n{3,}/g, "\n\n"));
});
