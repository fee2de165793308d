// The socket of this tab: opened again whenever it is lost, closed while the page is paused.

import { backoff } from "../helpers/timing.js";

const PING_AFTER = 25_000; // milliseconds without any frame
const DEAD_AFTER = 60_000; // without any frame, when no ping could be sent (the machine slept)
const PONG_WITHIN = 10_000; // otherwise the connection is dead
const PROBE_WITHIN = 4_000; // the same, when the user has just returned to the page
const OPEN_WITHIN = 10_000; // otherwise the attempt is given up
const STALE_AFTER = 2_000; // an older attempt is replaced when the network returns
const STEADY_AFTER = 10_000; // a connection that lasted so long resets the backoff
const CHECK_EVERY = 5_000;
const RETRY_AFTER = 30; // seconds, after TOO_MANY without a time from the server
const RESTART_SPREAD = 3_000; // so that the pages of a restarting server do not return all at once

/** The server is restarting. */
export const RESTARTING = 1012;
/** The server rejected a frame: sending it again would close the next connection, too. */
export const REFUSED = new Set([1003, 1009]);
export const NOT_SIGNED_IN = 4401;
/** The user has too many sockets or sends too much; the error before it has the time to wait. */
export const TOO_MANY = 4429;
const OWN = new Set(["ready", "pong"]); // events about the connection alone
const FINAL = new Set([NOT_SIGNED_IN, 4403, 4404]);

/**
 * Events: "message" (detail: an event of the server), "open" (the server sent `ready`;
 * detail.isReconnect: not for the first time), "lost" (detail.code; after TOO_MANY also detail.message
 * and detail.seconds, until the next attempt), "ended" (detail: the close code; the socket is not opened
 * again).
 */
export class Connection extends EventTarget {
  #create;
  #random;
  #socket = null;
  #state = "idle"; // connecting, open, waiting, paused, ended
  #attempt = 0;
  #openCount = 0;
  #startedAt = 0;
  #attemptedAt = 0;
  #openedAt = 0;
  #receivedAt = 0;
  #pingedAt = null; // the time of an unanswered ping
  #refusal = null; // the last error that concerned no frame
  #notBefore = 0; // the time of the next attempt after TOO_MANY
  #timer = null;
  #checks = null;
  user = null; // the id of the user, as the server sent it with `ready`

  /** `create()` makes a WebSocket. */
  constructor(create, random = Math.random) {
    super();
    this.#create = create;
    this.#random = random;
  }

  get isOpen() {
    return this.#state === "open";
  }

  /** Whether the server has ever sent `ready`. */
  get wasOpen() {
    return this.#openCount > 0;
  }

  /** Whether to rely on it for a frame that must arrive: it was open, or may still open soon. */
  get isUsable() {
    if (this.#state === "ended") return false;
    return this.#openCount > 0 || Date.now() - this.#startedAt < 3_000;
  }

  start() {
    this.#startedAt = Date.now();
    this.#connect();
  }

  /** Send an event; returns false when the socket is not open. */
  send(event) {
    if (!this.isOpen) return false;
    this.#socket.send(JSON.stringify(event));
    return true;
  }

  /** Connect now, or check that the connection is alive: the tab is visible or the network back. */
  wake() {
    const now = Date.now();
    if (this.#state === "waiting" || this.#state === "paused") this.#connectSoon(now);
    else if (this.#state === "connecting" && now - this.#attemptedAt >= STALE_AFTER) this.#connect();
    else if (this.isOpen && now - this.#receivedAt >= DEAD_AFTER) this.#closed(this.#socket, null, 0);
    else if (this.isOpen) this.#probe();
  }

  /** Close the socket until `wake`. */
  pause() {
    if (this.#state === "ended") return;
    this.#drop();
    this.#state = "paused";
  }

  // --- Internal

  #connectSoon(now) {
    if (now >= this.#notBefore) {
      this.#connect();
      return;
    }
    clearTimeout(this.#timer);
    this.#state = "waiting";
    this.#timer = setTimeout(() => this.#connect(), this.#notBefore - now);
  }

  #connect() {
    this.#drop();
    this.#state = "connecting";
    this.#refusal = null;
    this.#attemptedAt = Date.now();
    const socket = this.#create();
    this.#socket = socket;
    socket.onmessage = (message) => this.#receive(socket, message);
    socket.onclose = (close) => this.#closed(socket, close.code);
    this.#timer = setTimeout(() => this.#closed(socket, null), OPEN_WITHIN);
  }

  #receive(socket, message) {
    if (socket !== this.#socket) return;
    this.#receivedAt = Date.now();
    this.#pingedAt = null;
    const event = JSON.parse(message.data);
    if (event.type === "ready") {
      this.user = event.user;
      this.#opened();
    }
    if (event.type === "error" && !event.ref) this.#refusal = event;
    if (!OWN.has(event.type)) this.#fire("message", event);
  }

  #opened() {
    clearTimeout(this.#timer);
    this.#state = "open";
    this.#openedAt = Date.now();
    this.#openCount += 1;
    clearInterval(this.#checks);
    this.#checks = setInterval(() => this.#check(), CHECK_EVERY);
    this.#fire("open", { isReconnect: this.#openCount > 1 });
  }

  #check() {
    const now = Date.now();
    if (this.#pingedAt !== null) {
      if (now - this.#pingedAt >= PONG_WITHIN) this.#closed(this.#socket, null);
    } else if (now - this.#receivedAt >= PING_AFTER) this.#ping();
  }

  #ping() {
    this.#pingedAt = Date.now();
    this.send({ type: "ping" });
  }

  /** Ping with a short timeout: after a sleep or in another network the connection is often dead. */
  #probe() {
    const socket = this.#socket;
    this.#ping();
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => {
      if (this.#pingedAt !== null) this.#closed(socket, null, 0);
    }, PROBE_WITHIN);
  }

  #closed(socket, code, delay = null) {
    if (socket !== this.#socket) return;
    if (this.isOpen && Date.now() - this.#openedAt >= STEADY_AFTER) this.#attempt = 0;
    this.#drop();
    if (FINAL.has(code)) {
      this.#state = "ended";
      this.#fire("ended", code);
      return;
    }
    this.#state = "waiting";
    const pause = delay ?? this.#pauseAfter(code);
    this.#timer = setTimeout(() => this.#connect(), pause);
    this.#attempt += 1;
    if (code !== TOO_MANY) {
      this.#fire("lost", { code });
      return;
    }
    this.#notBefore = Date.now() + pause;
    this.#fire("lost", { code, message: this.#refusal?.message ?? "", seconds: pause / 1_000 });
  }

  #pauseAfter(code) {
    if (code === TOO_MANY) {
      const seconds = this.#refusal?.retry_after ?? RETRY_AFTER;
      return 1_000 * seconds * (1 + 0.2 * this.#random()); // not all tabs at the same time
    }
    if (code === RESTARTING && this.#attempt === 0) return RESTART_SPREAD * this.#random();
    return backoff(this.#attempt, this.#random);
  }

  #drop() {
    clearTimeout(this.#timer);
    clearInterval(this.#checks);
    this.#pingedAt = null;
    const socket = this.#socket;
    this.#socket = null;
    if (socket === null) return;
    socket.onmessage = null;
    socket.onclose = null;
    socket.close();
  }

  #fire(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }
}
