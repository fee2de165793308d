// How a run waits for a worker: what to say of it, and whether the line stands still.

import { inLine } from "../helpers/words.js";

const STANDS_STILL = 60_000; // milliseconds without a step forward
const INTERRUPTED = "The reply was interrupted and is taken up again.";

export class Wait {
  #words = inLine(0);
  #position = null;
  #held = false;
  #movedAt;

  /** `since`: when it began to wait for this attempt, in milliseconds like Date.now(). */
  constructor(attempt, since) {
    this.attempt = attempt;
    this.#movedAt = since;
  }

  /** Take a place in line, as `run.queued` and `run.waiting` tell it. */
  take({ position, eta, held = false }, now = Date.now()) {
    const isForward = held === this.#held ? position < this.#position : this.#held;
    if (this.#position !== null && isForward) this.#movedAt = now;
    this.#position = position;
    this.#held = held;
    this.#words = inLine(position, eta, held);
  }

  /** What the page says meanwhile. */
  get words() {
    return this.attempt === 1 ? this.#words : `${INTERRUPTED} ${this.#words}`;
  }

  /** When it will be time to warn, if nothing moves until then; null for who waits for own replies. */
  get warnAt() {
    return this.#held ? null : this.#movedAt + STANDS_STILL;
  }
}
