import assert from "node:assert/strict";
import { test } from "node:test";

import {
  APPLY,
  END,
  GAP,
  IGNORE,
  RESTART,
  RunFollower,
} from "../../static/js/models/run_follower.js";

const SECOND = 10_000_001; // the first number of the second attempt

function event(type, seq, attempt = 1, run = "r") {
  return { type, run, seq, attempt };
}

function follow(...events) {
  const follower = new RunFollower("r");
  return [follower, events.map((each) => follower.take(each))];
}

test("it takes the events of a run in order", () => {
  const [follower, verdicts] = follow(
    event("run.started", 1),
    event("text.delta", 2),
    event("text.delta", 3),
    event("run.done", 4),
  );
  assert.deepEqual(verdicts, [APPLY, APPLY, APPLY, END]);
  assert.equal(follower.isOver, true);
});

test("it ignores other runs", () => {
  const [, verdicts] = follow(event("run.started", 1, 1, "other"));
  assert.deepEqual(verdicts, [IGNORE]);
});

test("it takes nothing twice, so that live and replay may overlap", () => {
  const [follower, verdicts] = follow(
    event("run.started", 1),
    event("text.delta", 2),
    event("text.delta", 2),
    event("run.started", 1),
    event("text.delta", 3),
  );
  assert.deepEqual(verdicts, [APPLY, APPLY, IGNORE, IGNORE, APPLY]);
  assert.equal(follower.last, 3);
});

test("it reports a gap and stays before it", () => {
  const [follower, verdicts] = follow(
    event("run.started", 1),
    event("text.delta", 4),
    event("text.delta", 2),
  );
  assert.deepEqual(verdicts, [APPLY, GAP, APPLY]);
  assert.equal(follower.last, 2);
});

test("a delta without the beginning of the run is a gap", () => {
  const [follower, verdicts] = follow(event("text.delta", 2));
  assert.deepEqual(verdicts, [GAP]);
  assert.equal(follower.last, 0);
});

test("a new attempt makes void what was shown, and the old one is heard no more", () => {
  const [follower, verdicts] = follow(
    event("run.started", 1),
    event("text.delta", 2),
    event("run.started", SECOND, 2),
    event("text.delta", 3),
    event("text.delta", SECOND + 1, 2),
  );
  assert.deepEqual(verdicts, [APPLY, APPLY, RESTART, IGNORE, APPLY]);
  assert.equal(follower.last, SECOND + 1);
});

test("a new attempt whose beginning is missing is a gap", () => {
  const [, verdicts] = follow(
    event("run.started", 1),
    event("text.delta", SECOND + 1, 2),
    event("run.started", SECOND, 2),
  );
  assert.deepEqual(verdicts, [APPLY, GAP, RESTART]);
});

test("who comes late may begin with a later attempt", () => {
  const [, verdicts] = follow(event("run.started", SECOND, 2), event("text.delta", SECOND + 1, 2));
  assert.deepEqual(verdicts, [APPLY, APPLY]);
});

for (const type of ["run.done", "run.stopped", "run.failed"]) {
  test(`${type} counts whatever is missing before it, once`, () => {
    const [follower, verdicts] = follow(
      event("run.started", 1),
      event(type, 9),
      event(type, 9),
      event("text.delta", 2),
    );
    assert.deepEqual(verdicts, [APPLY, END, IGNORE, IGNORE]);
    assert.equal(follower.isOver, true);
  });
}
