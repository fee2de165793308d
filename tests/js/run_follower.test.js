import assert from "node:assert/strict";
import { test } from "node:test";

import {
  APPLY,
  END,
  GAP,
  IGNORE,
  RESTART,
  RunFollower,
  WAIT,
} from "../../static/js/models/run_follower.js";

const SECOND = 10_000_001; // the first number of the second attempt

function event(type, seq, attempt = 1, run = "r") {
  return { type, run, seq, attempt };
}

function follow(...events) {
  const follower = new RunFollower("r");
  return [follower, events.map((each) => follower.receive(each))];
}

test("it applies the events of a run in order", () => {
  const [follower, verdicts] = follow(
    event("run.started", 1),
    event("text.delta", 2),
    event("text.delta", 3),
    event("run.done", 4),
  );
  assert.deepEqual(verdicts, [APPLY, APPLY, APPLY, END]);
  assert.equal(follower.hasEnded, true);
});

test("it ignores other runs", () => {
  const [, verdicts] = follow(event("run.started", 1, 1, "other"));
  assert.deepEqual(verdicts, [IGNORE]);
});

test("it applies no event twice, so that live and replayed events may overlap", () => {
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

test("it reports a gap and does not move past it", () => {
  const [follower, verdicts] = follow(
    event("run.started", 1),
    event("text.delta", 4),
    event("text.delta", 2),
  );
  assert.deepEqual(verdicts, [APPLY, GAP, APPLY]);
  assert.equal(follower.last, 2);
});

test("a delta without the start of the run is a gap", () => {
  const [follower, verdicts] = follow(event("text.delta", 2));
  assert.deepEqual(verdicts, [GAP]);
  assert.equal(follower.last, 0);
});

test("a new attempt replaces the reply, and events of the old one are ignored", () => {
  const [follower, verdicts] = follow(
    event("run.started", 1),
    event("text.delta", 2),
    event("run.restarted", SECOND, 2),
    event("text.delta", 3),
    event("text.delta", SECOND + 1, 2),
  );
  assert.deepEqual(verdicts, [APPLY, APPLY, RESTART, IGNORE, APPLY]);
  assert.equal(follower.last, SECOND + 1);
});

test("a new attempt whose first event is missing is a gap", () => {
  const [, verdicts] = follow(
    event("run.started", 1),
    event("text.delta", SECOND + 1, 2),
    event("run.restarted", SECOND, 2),
  );
  assert.deepEqual(verdicts, [APPLY, GAP, RESTART]);
});

test("a late follower may start with a later attempt", () => {
  const [, verdicts] = follow(
    event("run.restarted", SECOND, 2),
    event("text.delta", SECOND + 1, 2),
  );
  assert.deepEqual(verdicts, [RESTART, APPLY]);
});

test("missing events of a lost attempt are no gap, since the restart replaces them", () => {
  const [follower, verdicts] = follow(
    event("run.started", 1),
    event("text.delta", 2),
    event("run.restarted", SECOND, 2), // 3 to 9 were lost with their worker
  );
  assert.deepEqual(verdicts, [APPLY, APPLY, RESTART]);
  assert.equal(follower.last, SECOND);
});

test("a gap after a restart is reported from the restart on", () => {
  const [follower, verdicts] = follow(
    event("run.started", 1),
    event("run.restarted", SECOND, 2),
    event("text.delta", SECOND + 2, 2),
    event("run.restarted", SECOND, 2),
    event("text.delta", SECOND + 1, 2),
    event("text.delta", SECOND + 2, 2),
  );
  assert.deepEqual(verdicts, [APPLY, RESTART, GAP, IGNORE, APPLY, APPLY]);
  assert.equal(follower.last, SECOND + 2);
});

test("a restart may be missing when a later one arrives", () => {
  const [, verdicts] = follow(event("run.started", 1), event("run.restarted", 20_000_001, 3));
  assert.deepEqual(verdicts, [APPLY, RESTART]);
});

test("run.waiting counts only before its attempt starts, and moves no cursor", () => {
  const waiting = (attempt) => ({ type: "run.waiting", run: "r", attempt, position: 1 });
  const [follower, verdicts] = follow(
    waiting(1),
    event("run.started", 1),
    waiting(1),
    event("text.delta", 2),
    waiting(2),
    event("run.restarted", SECOND, 2),
    waiting(2),
    { ...event("run.done", 9), text: "" },
    waiting(3),
  );
  assert.deepEqual(verdicts, [WAIT, APPLY, IGNORE, APPLY, WAIT, RESTART, IGNORE, END, IGNORE]);
  assert.equal(follower.last, SECOND);
});

test("it has started when a worker has started the run", () => {
  const [follower] = follow({ type: "run.waiting", run: "r", attempt: 1, position: 1 });
  assert.equal(follower.hasStarted, false);
  follower.receive(event("run.started", 1));
  assert.equal(follower.hasStarted, true);
});

for (const type of ["run.done", "run.stopped", "run.failed"]) {
  test(`${type} ends the run once, also after a gap`, () => {
    const [follower, verdicts] = follow(
      event("run.started", 1),
      { ...event(type, 9), text: "" },
      { ...event(type, 9), text: "" },
      event("text.delta", 2),
    );
    assert.deepEqual(verdicts, [APPLY, END, IGNORE, IGNORE]);
    assert.equal(follower.hasEnded, true);
  });

  test(`${type} without a text is a gap, unless it is the next event`, () => {
    const [follower, verdicts] = follow(event("run.started", 1), event(type, 3), event("text.delta", 2), event(type, 3));
    assert.deepEqual(verdicts, [APPLY, GAP, APPLY, END]);
    assert.equal(follower.hasEnded, true);
  });
}
