import assert from "node:assert/strict";
import { beforeEach, mock, test } from "node:test";

import { Connection } from "../../static/js/models/connection.js";

const READY = { type: "ready", user: 7 };

class FakeSocket {
  sent = [];
  isClosed = false;

  send(data) {
    this.sent.push(JSON.parse(data));
  }

  close() {
    this.isClosed = true;
  }

  receive(event) {
    this.onmessage({ data: JSON.stringify(event) });
  }

  lose(code) {
    this.onclose({ code });
  }
}

let sockets;
let fired;
let connection;

beforeEach(() => {
  mock.timers.reset();
  mock.timers.enable({ apis: ["setTimeout", "setInterval", "Date"], now: 1_000_000 });
  sockets = [];
  fired = [];
  connection = new Connection(
    () => {
      sockets.push(new FakeSocket());
      return sockets.at(-1);
    },
    () => 1,
  );
  for (const name of ["message", "open", "lost", "ended"]) {
    connection.addEventListener(name, ({ detail }) => fired.push([name, detail]));
  }
  connection.start();
});

function open() {
  sockets.at(-1).receive(READY);
}

test("it is open when the server has sent ready, not before", () => {
  assert.equal(connection.isOpen, false);
  assert.equal(connection.send({ type: "ping" }), false);
  open();
  assert.equal(connection.isOpen, true);
  assert.deepEqual(fired, [["open", { isReconnect: false }]]);
});

test("it has the user that the server named", () => {
  open();
  assert.equal(connection.user, 7);
});

test("it passes on the server's events, but not the answers to its own pings", () => {
  open();
  sockets[0].receive({ type: "pong" });
  sockets[0].receive({ type: "text.delta", text: "a" });
  assert.deepEqual(fired.slice(1), [["message", { type: "text.delta", text: "a" }]]);
});

test("it reconnects after a loss, and reports that it is a reconnect", () => {
  open();
  sockets[0].lose(1006);
  assert.equal(sockets.length, 1);
  mock.timers.tick(1_000);
  assert.equal(sockets.length, 2);
  open();
  assert.deepEqual(fired.at(-1), ["open", { isReconnect: true }]);
});

test("it waits longer before each attempt, up to half a minute", () => {
  const waits = [];
  for (let attempt = 0; attempt < 8; attempt += 1) {
    const before = sockets.length;
    sockets.at(-1).lose(1006);
    let waited = 0;
    while (sockets.length === before) {
      mock.timers.tick(500);
      waited += 500;
    }
    waits.push(waited);
  }
  assert.deepEqual(waits, [1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000, 30_000]);
});

test("it reconnects to a restarting server within three seconds", () => {
  open();
  sockets[0].lose(1012);
  mock.timers.tick(2_999);
  assert.equal(sockets.length, 1);
  mock.timers.tick(1);
  assert.equal(sockets.length, 2);
});

test("it waits longer each time when it is refused right after opening", () => {
  for (const wait of [1_000, 2_000, 4_000]) {
    open();
    sockets.at(-1).lose(1013);
    const before = sockets.length;
    mock.timers.tick(wait - 1);
    assert.equal(sockets.length, before);
    mock.timers.tick(1);
    assert.equal(sockets.length, before + 1);
  }
});

test("it waits as long as the server says after too many sockets, also when woken", () => {
  const refusal = { type: "error", code: "rate_limited", message: "Too many tabs.", retry_after: 30 };
  sockets.at(-1).receive(refusal);
  sockets.at(-1).lose(4429);
  const lost = { code: 4429, message: "Too many tabs.", seconds: 36 };
  assert.deepEqual(fired.at(-1), ["lost", lost]);
  mock.timers.tick(35_000);
  connection.wake();
  connection.pause();
  connection.wake();
  assert.equal(sockets.length, 1);
  mock.timers.tick(999);
  assert.equal(sockets.length, 1);
  mock.timers.tick(1);
  assert.equal(sockets.length, 2);
});

test("a connection that lasted resets the backoff", () => {
  sockets.at(-1).lose(1006);
  mock.timers.tick(1_000);
  sockets.at(-1).lose(1006);
  mock.timers.tick(2_000);
  open();
  mock.timers.tick(20_000);
  const before = sockets.length;
  sockets.at(-1).lose(1006);
  mock.timers.tick(1_000);
  assert.equal(sockets.length, before + 1);
});

for (const code of [4401, 4403, 4404]) {
  test(`it does not reconnect after ${code}`, () => {
    open();
    sockets[0].lose(code);
    mock.timers.tick(120_000);
    connection.wake();
    assert.equal(sockets.length, 1);
    assert.deepEqual(fired.at(-1), ["ended", code]);
  });
}

test("the clients of a restarting server do not reconnect all at once", () => {
  const waits = [0, 0.25, 0.5, 1].map((chance) => {
    const made = [];
    const one = new Connection(
      () => {
        made.push(new FakeSocket());
        return made.at(-1);
      },
      () => chance,
    );
    one.start();
    made[0].receive(READY);
    made[0].lose(1012);
    let waited = 0;
    while (made.length === 1) {
      mock.timers.tick(50);
      waited += 50;
    }
    return waited;
  });
  assert.deepEqual(waits, [50, 750, 1_500, 3_000]);
});

test("it waits longer for a server that restarts again", () => {
  open();
  sockets[0].lose(1012);
  mock.timers.tick(3_000);
  open();
  sockets[1].lose(1012);
  mock.timers.tick(1_999);
  assert.equal(sockets.length, 2);
  mock.timers.tick(1);
  assert.equal(sockets.length, 3);
});

test("it pings after 25 seconds without any frame, not before", () => {
  open();
  for (let second = 0; second < 60; second += 5) {
    mock.timers.tick(5_000);
    sockets[0].receive({ type: "text.delta", text: "a" });
  }
  assert.deepEqual(sockets[0].sent, []);
  mock.timers.tick(25_000);
  assert.deepEqual(sockets[0].sent, [{ type: "ping" }]);
  sockets[0].receive({ type: "pong" });
  mock.timers.tick(25_000);
  assert.deepEqual(sockets[0].sent, [{ type: "ping" }, { type: "ping" }]);
});

test("a connection without an answer to a ping for ten seconds is dead", () => {
  open();
  for (let second = 0; second < 30; second += 5) mock.timers.tick(5_000);
  assert.deepEqual(sockets[0].sent, [{ type: "ping" }]);
  assert.equal(connection.isOpen, true);
  mock.timers.tick(5_000);
  assert.equal(connection.isOpen, false);
  assert.equal(sockets[0].isClosed, true);
  mock.timers.tick(1_000);
  assert.equal(sockets.length, 2);
});

test("an attempt without an answer is given up after ten seconds", () => {
  mock.timers.tick(10_000);
  assert.equal(sockets[0].isClosed, true);
  mock.timers.tick(1_000);
  assert.equal(sockets.length, 2);
});

test("frames of an abandoned socket are ignored", () => {
  open();
  const old = sockets[0];
  const late = old.onmessage;
  old.lose(1006);
  mock.timers.tick(1_000);
  open();
  const before = fired.length;
  late({ data: JSON.stringify({ type: "text.delta", text: "late" }) });
  assert.equal(fired.length, before);
});

test("it is closed while paused, and connects at once on wake", () => {
  open();
  connection.pause();
  assert.equal(sockets[0].isClosed, true);
  mock.timers.tick(600_000);
  assert.equal(sockets.length, 1);
  connection.wake();
  assert.equal(sockets.length, 2);
});

test("waking does not wait for the end of the backoff", () => {
  open();
  sockets[0].lose(1006);
  connection.wake();
  assert.equal(sockets.length, 2);
  mock.timers.tick(5_000);
  assert.equal(sockets.length, 2);
});

test("waking after a sleep of the machine finds the connection dead", () => {
  open();
  mock.timers.setTime(1_000_000 + 3_600_000);
  connection.wake();
  assert.equal(connection.isOpen, false);
  mock.timers.tick(0);
  assert.equal(sockets.length, 2);
});

test("waking pings the connection, with a short timeout", () => {
  open();
  mock.timers.tick(10_000);
  connection.wake();
  assert.deepEqual(sockets[0].sent, [{ type: "ping" }]);
  sockets[0].receive({ type: "pong" });
  mock.timers.tick(4_000);
  assert.equal(connection.isOpen, true);

  connection.wake();
  mock.timers.tick(4_000);
  assert.equal(connection.isOpen, false);
  mock.timers.tick(0);
  assert.equal(sockets.length, 2);
});

test("waking replaces an old attempt, but not a fresh one", () => {
  mock.timers.tick(1_999);
  connection.wake();
  assert.equal(sockets.length, 1);
  mock.timers.tick(1);
  connection.wake();
  assert.equal(sockets.length, 2);
  assert.equal(sockets[0].isClosed, true);
});

test("it is usable while its first attempt is young, and once it was open", () => {
  assert.equal(connection.isUsable, true);
  mock.timers.tick(3_000);
  assert.equal(connection.isUsable, false);
  open();
  assert.equal(connection.isUsable, true);
  sockets[0].lose(1006);
  assert.equal(connection.isUsable, true);
  mock.timers.tick(1_000);
  sockets.at(-1).lose(4401);
  assert.equal(connection.isUsable, false);
});
