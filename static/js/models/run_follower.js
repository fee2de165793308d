// The position of a page in the events of a run. The rules are those of docs/protocol.md.

export const APPLY = "apply"; // the next event: show it
export const WAIT = "wait"; // no worker has the run: show its queue position
export const RESTART = "restart"; // another worker has it: the event replaces the reply so far
export const IGNORE = "ignore"; // a repetition, or from an attempt that has ended
export const GAP = "gap"; // an event is missing: resume after `last`
export const END = "end"; // the terminal event, which carries the whole reply

const ENDS = new Set(["run.done", "run.stopped", "run.failed"]);
const SEQS_PER_ATTEMPT = 10_000_000;

export class RunFollower {
  #attempt = 0;
  #last = 0;
  #hasEnded = false;

  constructor(run) {
    this.run = run;
  }

  /** The number of the last event that was applied. */
  get last() {
    return this.#last;
  }

  /** Whether a worker has started the run. */
  get hasStarted() {
    return this.#attempt > 0;
  }

  get hasEnded() {
    return this.#hasEnded;
  }

  /** Receive an event and return what to do with it: one of the constants above. */
  receive(event) {
    if (this.#hasEnded || event.run !== this.run) return IGNORE;
    if (ENDS.has(event.type)) {
      // Without the reply's text it needs all events before it. Otherwise it needs none.
      const isNext = event.attempt === this.#attempt && event.seq === this.#last + 1;
      if (event.text === undefined && !isNext) return GAP;
      this.#hasEnded = true;
      return END;
    }
    if (event.type === "run.waiting") return event.attempt > this.#attempt ? WAIT : IGNORE;
    if (event.attempt < this.#attempt || event.seq <= this.#last) return IGNORE;
    if (event.attempt > this.#attempt) {
      if (event.seq !== firstSeq(event.attempt)) return GAP;
      this.#attempt = event.attempt;
      this.#last = event.seq;
      return event.type === "run.restarted" ? RESTART : APPLY;
    }
    if (event.seq !== this.#last + 1) return GAP;
    this.#last = event.seq;
    return APPLY;
  }
}

function firstSeq(attempt) {
  return (attempt - 1) * SEQS_PER_ATTEMPT + 1;
}
