// The socket of this tab: opened again whenever it is lost, silent while the tab is hidden.

import { backoff } from "../helpers/timing.js";

const PING_EVERY = 25_000; // milliseconds
const DEAD_AFTER = 60_000; // without any frame
const OPEN_WITHIN = 10_000; // or the attempt is given up
const STEADY_AFTER = 10_000; // an attempt that lived so long begins the waiting times anew
const CHECK_EVERY = 5_000;

const RESTARTING = 1012;
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
  #openedAt = 0;
  #heardAt = 0;
  #pingedAt = 0;
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

  /** Open, or so young that it is worth a moment's wait. */
  get isPromising() {
    const young = this.#opens === 0 && Date.now() - this.#startedAt < 3_000;
    return this.isOpen || (this.#state === "connecting" && young);
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

  /** Connect now if there is no connection: the tab is seen again, the network is back. */
  wake() {
    if (this.#state === "waiting" || this.#state === "paused") this.#connect();
    else if (this.isOpen) this.#check();
  }

  /** Hang up until `wake`. */
  pause() {
    if (this.#state === "ended") return;
    this.#drop();
    this.#state = "paused";
  }

  // --- Internal

  #connect() {
    clearTimeout(this.#timer);
    this.#state = "connecting";
    const socket = this.#create();
    this.#socket = socket;
    socket.onmessage = (message) => this.#receive(socket, message);
    socket.onclose = (close) => this.#closed(socket, close.code);
    this.#timer = setTimeout(() => this.#closed(socket, null), OPEN_WITHIN);
  }

  #receive(socket, message) {
    if (socket !== this.#socket) return;
    this.#heardAt = Date.now();
    const event = JSON.parse(message.data);
    if (event.type === "ready") this.#opened();
    else if (event.type !== "pong") this.#tell("message", event);
  }

  #opened() {
    clearTimeout(this.#timer);
    this.#state = "open";
    this.#openedAt = Date.now();
    this.#pingedAt = Date.now();
    this.#opens += 1;
    clearInterval(this.#checks);
    this.#checks = setInterval(() => this.#check(), CHECK_EVERY);
    this.#tell("open", { again: this.#opens > 1 });
  }

  #check() {
    const now = Date.now();
    if (now - this.#heardAt >= DEAD_AFTER) {
      this.#closed(this.#socket, null);
    } else if (now - this.#pingedAt >= PING_EVERY) {
      this.#pingedAt = now;
      this.send({ type: "ping" });
    }
  }

  #closed(socket, code) {
    if (socket !== this.#socket) return;
    if (this.isOpen && Date.now() - this.#openedAt >= STEADY_AFTER) this.#attempt = 0;
    this.#drop();
    if (FINAL.has(code)) {
      this.#state = "ended";
      this.#tell("ended", code);
      return;
    }
    this.#state = "waiting";
    const delay =
      code === RESTARTING && this.#attempt === 0
        ? 1_000 * this.#random()
        : backoff(this.#attempt, this.#random);
    this.#attempt += 1;
    this.#timer = setTimeout(() => this.#connect(), delay);
    this.#tell("lost", { code });
  }

  #drop() {
    clearTimeout(this.#timer);
    clearInterval(this.#checks);
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
