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
let heard;
let connection;

beforeEach(() => {
  mock.timers.reset();
  mock.timers.enable({ apis: ["setTimeout", "setInterval", "Date"], now: 1_000_000 });
  sockets = [];
  heard = [];
  connection = new Connection(
    () => {
      sockets.push(new FakeSocket());
      return sockets.at(-1);
    },
    () => 1,
  );
  for (const name of ["message", "open", "lost", "ended"]) {
    connection.addEventListener(name, ({ detail }) => heard.push([name, detail]));
  }
  connection.start();
});

function open() {
  sockets.at(-1).receive(READY);
}

test("it is open when the server has said ready, not before", () => {
  assert.equal(connection.isOpen, false);
  assert.equal(connection.send({ type: "ping" }), false);
  open();
  assert.equal(connection.isOpen, true);
  assert.deepEqual(heard, [["open", { again: false }]]);
});

test("it passes on what the server sends, but not the answers to its own pings", () => {
  open();
  sockets[0].receive({ type: "pong" });
  sockets[0].receive({ type: "text.delta", text: "a" });
  assert.deepEqual(heard.slice(1), [["message", { type: "text.delta", text: "a" }]]);
});

test("it connects again after a loss, and says that it is not the first time", () => {
  open();
  sockets[0].lose(1006);
  assert.equal(sockets.length, 1);
  mock.timers.tick(1_000);
  assert.equal(sockets.length, 2);
  open();
  assert.deepEqual(heard.at(-1), ["open", { again: true }]);
});

test("it waits longer from attempt to attempt, half a minute at most", () => {
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

test("who is sent away by a server that restarts comes back within three seconds", () => {
  open();
  sockets[0].lose(1012);
  mock.timers.tick(2_999);
  assert.equal(sockets.length, 1);
  mock.timers.tick(1);
  assert.equal(sockets.length, 2);
});

test("a connection that is refused right after it opened still waits longer each time", () => {
  for (const wait of [1_000, 2_000, 4_000]) {
    open();
    sockets.at(-1).lose(4429);
    const before = sockets.length;
    mock.timers.tick(wait - 1);
    assert.equal(sockets.length, before);
    mock.timers.tick(1);
    assert.equal(sockets.length, before + 1);
  }
});

test("the waiting begins anew after a connection that lived", () => {
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
  test(`it does not come back after ${code}`, () => {
    open();
    sockets[0].lose(code);
    mock.timers.tick(120_000);
    connection.wake();
    assert.equal(sockets.length, 1);
    assert.deepEqual(heard.at(-1), ["ended", code]);
  });
}

test("those whom a restarting server sends away do not come back in the same moment", () => {
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

test("a server that restarts over and over is tried less and less often", () => {
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

test("it pings after 25 seconds of silence, not while it hears something", () => {
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

test("a connection that does not answer a ping for ten seconds is dead", () => {
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

test("an attempt that gets no answer is given up after ten seconds", () => {
  mock.timers.tick(10_000);
  assert.equal(sockets[0].isClosed, true);
  mock.timers.tick(1_000);
  assert.equal(sockets.length, 2);
});

test("what a given up socket still says is not heard", () => {
  open();
  const old = sockets[0];
  const late = old.onmessage;
  old.lose(1006);
  mock.timers.tick(1_000);
  open();
  const before = heard.length;
  late({ data: JSON.stringify({ type: "text.delta", text: "late" }) });
  assert.equal(heard.length, before);
});

test("it is silent while paused, and back at once when it is woken", () => {
  open();
  connection.pause();
  assert.equal(sockets[0].isClosed, true);
  mock.timers.tick(600_000);
  assert.equal(sockets.length, 1);
  connection.wake();
  assert.equal(sockets.length, 2);
});

test("waking does not wait for the end of the waiting time", () => {
  open();
  sockets[0].lose(1006);
  connection.wake();
  assert.equal(sockets.length, 2);
  mock.timers.tick(5_000);
  assert.equal(sockets.length, 2);
});

test("waking after a sleep of the machine notices that the connection is dead", () => {
  open();
  mock.timers.setTime(1_000_000 + 3_600_000);
  connection.wake();
  assert.equal(connection.isOpen, false);
  mock.timers.tick(0);
  assert.equal(sockets.length, 2);
});

test("waking asks whether the connection is still alive, and does not wait long for the answer", () => {
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

test("waking gives up an attempt from before the network was back, but not a fresh one", () => {
  mock.timers.tick(1_999);
  connection.wake();
  assert.equal(sockets.length, 1);
  mock.timers.tick(1);
  connection.wake();
  assert.equal(sockets.length, 2);
  assert.equal(sockets[0].isClosed, true);
});

test("it takes what is to be sent while its first attempt is young, and once it was open", () => {
  assert.equal(connection.isPromising, true);
  mock.timers.tick(3_000);
  assert.equal(connection.isPromising, false);
  open();
  assert.equal(connection.isPromising, true);
  sockets[0].lose(1006);
  assert.equal(connection.isPromising, true);
  mock.timers.tick(1_000);
  sockets.at(-1).lose(4401);
  assert.equal(connection.isPromising, false);
});
