// The wait of a run for a worker: its status for the page, and whether the queue has stopped moving.

import { queueStatus } from "../helpers/words.js";

const STALLED_AFTER = 60_000; // milliseconds without a step forward
const INTERRUPTED = "Reply interrupted. Resuming…";

export class Wait {
  #status = queueStatus(0);
  #position = null;
  #throttled = false;
  #movedAt;

  /** `since`: when the wait for this attempt began, in milliseconds like Date.now(). */
  constructor(attempt, since) {
    this.attempt = attempt;
    this.#movedAt = since;
  }

  /** Store a queue position, as `run.queued` and `run.waiting` carry it. */
  update({ position, eta, held = false }, now = Date.now()) {
    const isForward = held === this.#throttled ? position < this.#position : this.#throttled;
    if (this.#position !== null && isForward) this.#movedAt = now;
    this.#position = position;
    this.#throttled = held;
    this.#status = queueStatus(position, eta, held);
  }

  /** The sentence that the page shows during the wait. */
  get status() {
    if (this.attempt === 1) return this.#status;
    return this.#position > 0 ? `${INTERRUPTED} ${this.#status}` : INTERRUPTED;
  }

  /** When to warn if nothing moves until then; null while the user's other replies come first. */
  get warnAt() {
    return this.#throttled ? null : this.#movedAt + STALLED_AFTER;
  }
}
