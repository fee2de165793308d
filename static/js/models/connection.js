// The socket of this tab: opened again whenever it is lost, silent while the tab is hidden.

import { backoff } from "../helpers/timing.js";

const PING_AFTER = 25_000; // milliseconds without any frame
const DEAD_AFTER = 60_000; // the same, when it was not possible to ask meanwhile
const PONG_WITHIN = 10_000; // or the connection is dead
const PROBE_WITHIN = 4_000; // the same, while somebody looks at the page again
const OPEN_WITHIN = 10_000; // or the attempt is given up
const STALE_AFTER = 2_000; // an attempt that began so long before the network was back
const STEADY_AFTER = 10_000; // a connection that lived so long begins the waiting times anew
const CHECK_EVERY = 5_000;
const SPREAD = 3_000; // so that not all pages of a restarting server come back at once

/** The server restarts. */
export const RESTARTING = 1012;
/** The server could not take what was sent: sending it again would end the next connection, too. */
export const REFUSED = new Set([1003, 1009]);
export const NOT_SIGNED_IN = 4401;
const FINAL = new Set([NOT_SIGNED_IN, 4403, 4404]);

/**
 * Events: "message" (detail: what the server sent), "open" (it said ready; detail.again: not for
 * the first time), "lost" (detail.code), "ended" (detail: the close code; it will not be opened again).
 */
export class Connection extends EventTarget {
  #create;
  #random;
  #socket = null;
  #state = "idle"; // connecting, open, waiting, paused, ended
  #attempt = 0;
  #opens = 0;
  #startedAt = 0;
  #triedAt = 0;
  #openedAt = 0;
  #heardAt = 0;
  #askedAt = null; // when an unanswered ping was sent
  #timer = null;
  #checks = null;

  /** `create()` makes a WebSocket. */
  constructor(create, random = Math.random) {
    super();
    this.#create = create;
    this.#random = random;
  }

  get isOpen() {
    return this.#state === "open";
  }

  /** What is given to it now will be sent: it was open before, or is so young that it may open. */
  get isPromising() {
    if (this.#state === "ended") return false;
    return this.#opens > 0 || Date.now() - this.#startedAt < 3_000;
  }

  start() {
    this.#startedAt = Date.now();
    this.#connect();
  }

  /** Send an event; false when there is no connection to send it on. */
  send(event) {
    if (!this.isOpen) return false;
    this.#socket.send(JSON.stringify(event));
    return true;
  }

  /** See to it that there is a connection: the tab is seen again, the network is back. */
  wake() {
    const now = Date.now();
    if (this.#state === "waiting" || this.#state === "paused") this.#connect();
    else if (this.#state === "connecting" && now - this.#triedAt >= STALE_AFTER) this.#connect();
    else if (this.isOpen && now - this.#heardAt >= DEAD_AFTER) this.#closed(this.#socket, null, 0);
    else if (this.isOpen) this.#probe();
  }

  /** Hang up until `wake`. */
  pause() {
    if (this.#state === "ended") return;
    this.#drop();
    this.#state = "paused";
  }

  // --- Internal

  #connect() {
    this.#drop();
    this.#state = "connecting";
    this.#triedAt = Date.now();
    const socket = this.#create();
    this.#socket = socket;
    socket.onmessage = (message) => this.#receive(socket, message);
    socket.onclose = (close) => this.#closed(socket, close.code);
    this.#timer = setTimeout(() => this.#closed(socket, null), OPEN_WITHIN);
  }

  #receive(socket, message) {
    if (socket !== this.#socket) return;
    this.#heardAt = Date.now();
    this.#askedAt = null;
    const event = JSON.parse(message.data);
    if (event.type === "ready") this.#opened();
    else if (event.type !== "pong") this.#tell("message", event);
  }

  #opened() {
    clearTimeout(this.#timer);
    this.#state = "open";
    this.#openedAt = Date.now();
    this.#opens += 1;
    clearInterval(this.#checks);
    this.#checks = setInterval(() => this.#check(), CHECK_EVERY);
    this.#tell("open", { again: this.#opens > 1 });
  }

  #check() {
    const now = Date.now();
    if (this.#askedAt !== null) {
      if (now - this.#askedAt >= PONG_WITHIN) this.#closed(this.#socket, null);
    } else if (now - this.#heardAt >= PING_AFTER) this.#ask();
  }

  #ask() {
    this.#askedAt = Date.now();
    this.send({ type: "ping" });
  }

  /** Ask whether it is alive, with less patience: after a sleep or in another network it is not. */
  #probe() {
    const socket = this.#socket;
    this.#ask();
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => {
      if (this.#askedAt !== null) this.#closed(socket, null, 0);
    }, PROBE_WITHIN);
  }

  #closed(socket, code, delay = null) {
    if (socket !== this.#socket) return;
    if (this.isOpen && Date.now() - this.#openedAt >= STEADY_AFTER) this.#attempt = 0;
    this.#drop();
    if (FINAL.has(code)) {
      this.#state = "ended";
      this.#tell("ended", code);
      return;
    }
    this.#state = "waiting";
    this.#timer = setTimeout(() => this.#connect(), delay ?? this.#pauseAfter(code));
    this.#attempt += 1;
    this.#tell("lost", { code });
  }

  #pauseAfter(code) {
    if (code === RESTARTING && this.#attempt === 0) return SPREAD * this.#random();
    return backoff(this.#attempt, this.#random);
  }

  #drop() {
    clearTimeout(this.#timer);
    clearInterval(this.#checks);
    this.#askedAt = null;
    const socket = this.#socket;
    this.#socket = null;
    if (socket === null) return;
    socket.onmessage = null;
    socket.onclose = null;
    socket.close();
  }

  #tell(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }
}
