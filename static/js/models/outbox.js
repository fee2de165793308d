// What was sent and not yet acknowledged. It is in the tab's storage, so that a reload in the very
// moment loses nothing: a frame that is sent again under the same client_id has one effect.

const KEY = "outbox";
const TOO_OLD = 10 * 60_000; // milliseconds; a tab that is opened again days later sends nothing

export class Outbox {
  #storage;

  constructor(storage) {
    this.#storage = storage;
  }

  /** Keep a frame until `take` is called with its client_id. */
  put(frame, now = Date.now()) {
    this.#write([...this.#read(), { frame, at: now }]);
  }

  /** Forget a frame and return it; undefined when it is not there. */
  take(clientId) {
    const all = this.#read();
    const found = all.find(({ frame }) => frame.client_id === clientId);
    if (found) this.#write(all.filter((entry) => entry !== found));
    return found?.frame;
  }

  /** The frames that wait, oldest first. */
  waiting(now = Date.now()) {
    return this.#read()
      .filter(({ at }) => now - at < TOO_OLD)
      .map(({ frame }) => frame);
  }

  /** Take out the frames that are too old to be sent without being asked for. */
  takeOld(now = Date.now()) {
    const all = this.#read();
    const old = all.filter(({ at }) => now - at >= TOO_OLD);
    if (old.length) this.#write(all.filter((entry) => !old.includes(entry)));
    return old.map(({ frame }) => frame);
  }

  #read() {
    return JSON.parse(this.#storage.getItem(KEY) ?? "[]");
  }

  #write(all) {
    if (all.length) this.#storage.setItem(KEY, JSON.stringify(all));
    else this.#storage.removeItem(KEY);
  }
}
