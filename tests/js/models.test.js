import assert from "node:assert/strict";
import { beforeEach, test } from "node:test";

import { storageOf } from "../../static/js/helpers/storage.js";
import { Draft } from "../../static/js/models/draft.js";
import { Outbox } from "../../static/js/models/outbox.js";
import { ScrollManager } from "../../static/js/models/scroll_manager.js";
import { Wait } from "../../static/js/models/wait.js";

class FakeStorage {
  #all = new Map();

  getItem(key) {
    return this.#all.get(key) ?? null;
  }

  setItem(key, value) {
    this.#all.set(key, String(value));
  }

  removeItem(key) {
    this.#all.delete(key);
  }

  get size() {
    return this.#all.size;
  }
}

let storage;

beforeEach(() => {
  storage = new FakeStorage();
});

const FRAME = { type: "chat.send", client_id: "a", conversation: null, text: "Hello" };

test("the outbox keeps a frame until it is taken, also over a reload", () => {
  new Outbox(storage).put(FRAME);
  const after = new Outbox(storage);
  assert.deepEqual(after.waiting(), [FRAME]);
  assert.deepEqual(after.take("a"), FRAME);
  assert.equal(after.take("a"), undefined);
  assert.equal(storage.size, 0);
});

test("the outbox keeps the order", () => {
  const outbox = new Outbox(storage);
  outbox.put(FRAME);
  outbox.put({ ...FRAME, client_id: "b" });
  assert.deepEqual(
    outbox.waiting().map((frame) => frame.client_id),
    ["a", "b"],
  );
});

test("a tab that is opened again much later sends nothing by itself", () => {
  const outbox = new Outbox(storage);
  outbox.put(FRAME, 0);
  outbox.put({ ...FRAME, client_id: "b" }, 600_000);
  assert.deepEqual(outbox.takeOld(600_000), [FRAME]);
  assert.deepEqual(
    outbox.waiting(600_000).map((frame) => frame.client_id),
    ["b"],
  );
});

test("a draft belongs to its page", () => {
  new Draft(storage, "one").text = "half a sent";
  assert.equal(new Draft(storage, "one").text, "half a sent");
  assert.equal(new Draft(storage, "two").text, "");
});

test("a draft of white space is none", () => {
  const draft = new Draft(storage, "one");
  draft.text = "text";
  draft.text = " \n";
  assert.equal(storage.size, 0);
});

test("a draft that went out as a form is forgotten when the server has it, and only then", () => {
  const draft = new Draft(storage, "new");
  draft.text = "typed";
  draft.submitted();
  assert.equal(new Draft(storage, "new").text, "typed");
  Draft.arrived(storage);
  assert.equal(storage.size, 0);
});

test("who signs in next in the same tab finds nothing of the one before", () => {
  new Draft(storageOf("1", storage), "new").text = "mine";
  assert.equal(new Draft(storageOf("2", storage), "new").text, "");
  assert.equal(new Draft(storageOf("1", storage), "new").text, "mine");
});

function view(scrollTop, scrollHeight = 1000, clientHeight = 400) {
  return { scrollTop, scrollHeight, clientHeight };
}

test("the page follows what grows when one is at its end", () => {
  const page = view(600);
  new ScrollManager(page).follow(() => {
    page.scrollHeight = 1200;
  });
  assert.equal(page.scrollTop, 1200);
});

test("the page stays where it is when one has scrolled up", () => {
  const page = view(500);
  new ScrollManager(page).follow(() => {
    page.scrollHeight = 1200;
  });
  assert.equal(page.scrollTop, 500);
});

test("one's own message is always brought into sight", () => {
  const page = view(0);
  new ScrollManager(page).follow(() => {}, { always: true });
  assert.equal(page.scrollTop, 1000);
});

test("what comes in above does not move what is seen", () => {
  const page = view(100);
  new ScrollManager(page).hold(() => {
    page.scrollHeight = 1500;
  });
  assert.equal(page.scrollTop, 600);
});

test("who waits is told the place, and warned when nothing moved for a minute", () => {
  const wait = new Wait(1, 1_000);
  assert.equal(wait.words, "Starting the reply");
  wait.take({ position: 4, eta: 20 }, 2_000);
  assert.equal(wait.words, "3 others are before you, about 20 seconds");
  assert.equal(wait.warnAt, 61_000); // to have a place is no step forward
  wait.take({ position: 4 }, 30_000);
  assert.equal(wait.warnAt, 61_000);
  wait.take({ position: 3 }, 40_000);
  assert.equal(wait.words, "2 others are before you");
  assert.equal(wait.warnAt, 100_000);
});

test("to fall back in line is no step, to come forward again is one", () => {
  const wait = new Wait(1, 0);
  wait.take({ position: 1 }, 1_000);
  wait.take({ position: 5 }, 2_000);
  assert.equal(wait.warnAt, 60_000);
  wait.take({ position: 4 }, 3_000);
  assert.equal(wait.warnAt, 63_000);
});

test("to be held back no longer is a step, even to the end of the line", () => {
  const wait = new Wait(1, 0);
  wait.take({ position: 2, held: true }, 1_000);
  wait.take({ position: 9 }, 2_000);
  assert.equal(wait.words, "8 others are before you");
  assert.equal(wait.warnAt, 62_000);
  wait.take({ position: 1, held: true }, 3_000);
  assert.equal(wait.warnAt, null, "its own replies take as long as they take");
  wait.take({ position: 9 }, 4_000);
  assert.equal(wait.warnAt, 64_000);
});

test("who waits for a second worker is told what happened, too", () => {
  const wait = new Wait(2, 0);
  wait.take({ position: 1 }, 0);
  assert.equal(wait.words, "The reply was interrupted and is taken up again. Next in line");
});
