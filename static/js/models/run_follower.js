// Where a page stands in the events of a run. The rules are those of docs/protocol.md.

export const APPLY = "apply"; // the next event: show it
export const WAIT = "wait"; // no worker has the run at the moment: say how it stands in line
export const RESTART = "restart"; // another worker has it: the reply so far is what the event says
export const IGNORE = "ignore"; // seen already, or of an attempt that is over
export const GAP = "gap"; // something is missing: resume after `last`
export const END = "end"; // the last event, which says everything

const ENDS = new Set(["run.done", "run.stopped", "run.failed"]);
const SEQS_PER_ATTEMPT = 10_000_000;

export class RunFollower {
  #attempt = 0;
  #last = 0;
  #isOver = false;

  constructor(run) {
    this.run = run;
  }

  /** The number of the last event that was taken. */
  get last() {
    return this.#last;
  }

  /** Whether a worker had the run already. */
  get hasBegun() {
    return this.#attempt > 0;
  }

  get isOver() {
    return this.#isOver;
  }

  /** Take an event of the run, and say what is to be done with it. */
  take(event) {
    if (this.#isOver || event.run !== this.run) return IGNORE;
    if (ENDS.has(event.type)) {
      // Also out of order: the end of a run holds the whole reply.
      this.#isOver = true;
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
