// Follows runs by server-sent events, while a network lets no socket be opened at all.

const LAST = new Set(["run.done", "run.stopped", "run.failed", "share.ended"]);

/** Events: "message" (detail: an event of the server), "ended" (the last event of a run was received). */
export class EventFallback extends EventTarget {
  #sources = new Map(); // by the id of the run

  /** Whether a run is followed. */
  get isFollowing() {
    return this.#sources.size > 0;
  }

  /** Follow a run from the event after number `after`, unless it is followed already. */
  follow({ run, after }) {
    if (this.#sources.has(run)) return;
    const source = new EventSource(`/api/v1/runs/${run}/events?after=${after}`);
    this.#sources.set(run, source);
    source.onmessage = ({ data }) => {
      const event = JSON.parse(data);
      const isLast = LAST.has(event.type);
      if (isLast) this.#close(run); // or the browser would connect again
      this.dispatchEvent(new CustomEvent("message", { detail: event }));
      if (isLast) this.dispatchEvent(new CustomEvent("ended"));
    };
    source.onerror = () => {
      if (source.readyState === EventSource.CLOSED) this.#close(run); // refused: it does not try again
    };
  }

  /** Follow no run any longer. */
  stop() {
    for (const run of [...this.#sources.keys()]) this.#close(run);
  }

  #close(run) {
    this.#sources.get(run)?.close();
    this.#sources.delete(run);
  }
}
