// The wait of a run for a worker: its status for the page, and whether the queue has stopped moving.

import { gettext } from "../helpers/gettext.js";
import { queueStatus } from "../helpers/words.js";

const STALLED_AFTER = 60_000; // milliseconds without a step forward
const INTERRUPTED = gettext("Reply interrupted. Resuming…");

export class Wait {
  #status = queueStatus(0);
  #position = null;
  #throttled = false;
  #busy = false;
  #movedAt;

  /** `since`: when the wait for this attempt began, in milliseconds like Date.now(). */
  constructor(attempt, since) {
    this.attempt = attempt;
    this.#movedAt = since;
  }

  /** Store a queue position, as `run.queued` and `run.waiting` carry it. */
  update({ position, eta, held = false, busy = false }, now = Date.now()) {
    const isSameQueue = held === this.#throttled && busy === this.#busy;
    const isForward = isSameQueue ? position < this.#position : this.#throttled || this.#busy || busy;
    if (this.#position !== null && isForward) this.#movedAt = now;
    this.#position = position;
    this.#throttled = held;
    this.#busy = busy;
    this.#status = queueStatus(position, eta, held, busy);
  }

  /** The sentence that the page shows during the wait. */
  get status() {
    if (this.attempt === 1) return this.#status;
    return this.#position > 0 ? `${INTERRUPTED} ${this.#status}` : INTERRUPTED;
  }

  /** When to warn if nothing moves until then; null while other replies come first. */
  get warnAt() {
    return this.#throttled || this.#busy ? null : this.#movedAt + STALLED_AFTER;
  }
}
