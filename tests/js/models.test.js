import assert from "node:assert/strict";
import { beforeEach, test } from "node:test";

import { storageOf } from "../../static/js/helpers/storage.js";
import { Draft } from "../../static/js/models/draft.js";
import { DraftSync } from "../../static/js/models/draft_sync.js";
import { Outbox } from "../../static/js/models/outbox.js";
import { ReplySources } from "../../static/js/models/reply_sources.js";
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

test("the outbox keeps a frame until it is removed, also over a reload", () => {
  new Outbox(storage).put(FRAME);
  const after = new Outbox(storage);
  assert.deepEqual(after.pending(), [FRAME]);
  assert.deepEqual(after.remove("a"), FRAME);
  assert.equal(after.remove("a"), undefined);
  assert.equal(storage.size, 0);
});

test("the outbox keeps the order", () => {
  const outbox = new Outbox(storage);
  outbox.put(FRAME);
  outbox.put({ ...FRAME, client_id: "b" });
  assert.deepEqual(
    outbox.pending().map((frame) => frame.client_id),
    ["a", "b"],
  );
});

test("a tab that is restored much later sends nothing automatically", () => {
  const outbox = new Outbox(storage);
  outbox.put(FRAME, 0);
  outbox.put({ ...FRAME, client_id: "b" }, 600_000);
  assert.deepEqual(outbox.removeExpired(600_000), [FRAME]);
  assert.deepEqual(
    outbox.pending(600_000).map((frame) => frame.client_id),
    ["b"],
  );
});

test("a draft belongs to its page", () => {
  new Draft(storage, "one").text = "half a sent";
  assert.equal(new Draft(storage, "one").text, "half a sent");
  assert.equal(new Draft(storage, "two").text, "");
});

test("a blank draft is not stored", () => {
  const draft = new Draft(storage, "one");
  draft.text = "text";
  draft.text = " \n";
  assert.equal(storage.size, 0);
});

test("a draft that was submitted as a form is discarded when the server has it", () => {
  const draft = new Draft(storage, "new");
  draft.text = "typed";
  draft.submitted();
  assert.equal(new Draft(storage, "new").text, "typed");
  Draft.arrived(storage);
  assert.equal(storage.size, 0);
});

test("the next user of a tab does not find the drafts of the previous one", () => {
  new Draft(storageOf("1", storage), "new").text = "mine";
  assert.equal(new Draft(storageOf("2", storage), "new").text, "");
  assert.equal(new Draft(storageOf("1", storage), "new").text, "mine");
});

function view(scrollTop, scrollHeight = 1000, clientHeight = 400) {
  return { scrollTop, scrollHeight, clientHeight };
}

test("the page follows a growing reply when the reader is at its end", () => {
  const page = view(600);
  new ScrollManager(page).follow(() => {
    page.scrollHeight = 1200;
  });
  assert.equal(page.scrollTop, 1200);
});

test("the page does not move when the reader has scrolled up", () => {
  const page = view(500);
  new ScrollManager(page).follow(() => {
    page.scrollHeight = 1200;
  });
  assert.equal(page.scrollTop, 500);
});

test("a small movement up stops following, also before its scroll event", () => {
  const page = view(600);
  const scroll = new ScrollManager(page);
  page.scrollTop = 597;
  scroll.follow(() => {
    page.scrollHeight = 1030;
  });
  assert.equal(page.scrollTop, 597);

  scroll.toEnd();
  scroll.stop();
  scroll.follow(() => {
    page.scrollHeight = 1060;
  });
  assert.equal(page.scrollTop, 1030);
});

test("only the end resumes following", () => {
  const page = view(600);
  const scroll = new ScrollManager(page);
  page.scrollTop = 400;
  scroll.moved();
  page.scrollTop = 590;
  scroll.moved();
  scroll.resized();
  assert.equal(page.scrollTop, 590);

  page.scrollTop = 600;
  scroll.moved();
  page.scrollHeight = 1100;
  scroll.resized();
  assert.equal(page.scrollTop, 1100);
});

test("a page that becomes shorter keeps its reader at the end", () => {
  const page = view(600);
  const scroll = new ScrollManager(page);
  page.scrollHeight = 900;
  page.scrollTop = 500;
  scroll.moved();
  page.scrollHeight = 1200;
  scroll.resized();
  assert.equal(page.scrollTop, 1200);
});

test("the user's own message always scrolls into view", () => {
  const page = view(0);
  new ScrollManager(page).follow(() => {}, { always: true });
  assert.equal(page.scrollTop, 1000);
});

test("messages that are added above do not move the visible part", () => {
  const page = view(100);
  new ScrollManager(page).keepPosition(() => {
    page.scrollHeight = 1500;
  });
  assert.equal(page.scrollTop, 600);
});

test("a wait shows the queue position, and warns when nothing moved for a minute", () => {
  const wait = new Wait(1, 1_000);
  assert.equal(wait.status, "Starting…");
  wait.update({ position: 4, eta: 20 }, 2_000);
  assert.equal(wait.status, "Queued, 4th in line, about 20 s");
  assert.equal(wait.warnAt, 61_000); // the first position is not a step forward
  wait.update({ position: 4 }, 30_000);
  assert.equal(wait.warnAt, 61_000);
  wait.update({ position: 3 }, 40_000);
  assert.equal(wait.status, "Queued, 3rd in line");
  assert.equal(wait.warnAt, 100_000);
});

test("a higher queue position is no step forward, a lower one after it is", () => {
  const wait = new Wait(1, 0);
  wait.update({ position: 1 }, 1_000);
  wait.update({ position: 5 }, 2_000);
  assert.equal(wait.warnAt, 60_000);
  wait.update({ position: 4 }, 3_000);
  assert.equal(wait.warnAt, 63_000);
});

test("the end of throttling is a step forward, even to the end of the queue", () => {
  const wait = new Wait(1, 0);
  wait.update({ position: 2, held: true }, 1_000);
  wait.update({ position: 9 }, 2_000);
  assert.equal(wait.status, "Queued, 9th in line");
  assert.equal(wait.warnAt, 62_000);
  wait.update({ position: 1, held: true }, 3_000);
  assert.equal(wait.warnAt, null, "the user's own replies may take any time");
  wait.update({ position: 9 }, 4_000);
  assert.equal(wait.warnAt, 64_000);
});

test("a wait for a busy provider shows so, and warns of nothing", () => {
  const wait = new Wait(1, 0);
  wait.update({ position: 1 }, 1_000);
  wait.update({ position: 3, busy: true }, 2_000);
  assert.equal(wait.status, "The model is busy: 3rd in line");
  assert.equal(wait.warnAt, null);
  wait.update({ position: 1 }, 3_000);
  assert.equal(wait.status, "Queued, next in line");
  assert.equal(wait.warnAt, 63_000);
});

test("the wait for a second worker also shows the interruption", () => {
  const wait = new Wait(2, 0);
  assert.equal(wait.status, "Reply interrupted. Resuming…");
  wait.update({ position: 1 }, 0);
  assert.equal(wait.status, "Reply interrupted. Resuming… Queued, next in line");
  wait.update({ position: 0 }, 0);
  assert.equal(wait.status, "Reply interrupted. Resuming…");
});

test("the source of a reply is fetched once, and is then at hand", async () => {
  const asked = [];
  const answers = [null, "**text**"];
  const sources = new ReplySources(async (run) => {
    asked.push(run);
    return answers.shift();
  });
  assert.equal(await sources.get("a"), null);
  assert.equal(await sources.get("a"), "**text**");
  assert.equal(sources.get("a"), "**text**");
  assert.deepEqual(asked, ["a", "a"]);
  sources.put("b", "streamed");
  assert.equal(sources.get("b"), "streamed");
});

/** A DraftSync of a page, with what it sent and a clock. */
function draftOf(page, frames, clock) {
  const send = (frame) => frames.push(frame) > 0;
  return new DraftSync(storage, page, send, () => clock.now);
}

test("a draft is stored with its age, and used by the message", () => {
  const [frames, clock] = [[], { now: 1_000 }];
  const sync = draftOf("a", frames, clock);
  assert.equal(sync.load("", "", null), "");
  sync.edited("Hello");
  assert.equal(sync.isStored, false);
  clock.now = 1_400;
  sync.flush();
  sync.flush();
  assert.deepEqual(frames, [{ type: "draft.save", text: "Hello", age: 400, conversation: "a" }]);
  assert.equal(sync.isStored, true);
  sync.clear();
  assert.equal(sync.isStored, false);
});

test("the newer of two drafts is shown, but never over a text that is being typed", () => {
  const [frames, clock] = [[], { now: 100_000 }];
  const sync = draftOf("a", frames, clock);
  assert.equal(sync.load("", "Old", 50_000), "Old");
  assert.equal(sync.received({ conversation: "a", text: "New" }), "New");
  assert.equal(sync.received({ conversation: "b", text: "Other" }), null);
  sync.edited("Typing");
  assert.equal(sync.received({ conversation: "a", text: "Newer" }), null);
  sync.flush();
  assert.equal(sync.received({ conversation: "a", text: "Newest" }), null); // typed a moment ago
  sync.clear();
  assert.equal(sync.received({ conversation: "a" }), null);
});

test("a draft that was sent does not return with the late answer to its saving", () => {
  const sync = draftOf("a", [], { now: 1_000 });
  sync.load("", "", null);
  sync.edited("Hello");
  sync.flush();
  sync.clear(); // the message is sent before the answer comes
  assert.equal(sync.received({ conversation: "a", text: "Hello" }), null);
  assert.equal(sync.received({ conversation: "a" }), null);
  assert.equal(sync.received({ conversation: "a", text: "Of another device" }), "Of another device");
});

test("a reload shows the newer draft of tab and server", () => {
  const [frames, clock] = [[], { now: 100_000 }];
  const before = draftOf("new", frames, clock);
  before.load("", "", null);
  before.edited("Unsaved");
  assert.equal(draftOf("new", frames, clock).load("Unsaved", "Stored", 10), "Unsaved");
  assert.equal(draftOf("new", frames, clock).load("Unsaved", "Later", 0), "Unsaved");
  clock.now += 60_000;
  assert.equal(draftOf("new", frames, clock).load("Unsaved", "Newer", 10), "Newer");
  before.flush();
  assert.equal(draftOf("new", frames, clock).load("Unsaved", "", null), "Unsaved"); // not confirmed
  before.received({ text: "Unsaved" });
  assert.equal(draftOf("new", frames, clock).load("Unsaved", "", null), ""); // sent on another device
  assert.equal(draftOf("new", frames, clock).load("Refused", "Refused", null), "Refused");
  assert.equal(draftOf(null, frames, clock).load("", "Edited", null), "Edited");
});
