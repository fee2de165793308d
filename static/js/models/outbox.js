// Frames that are not yet acknowledged. They are in the tab's storage, so that a reload loses nothing:
// a frame that is sent again with the same client_id has one effect (idempotency key).

const KEY = "outbox";
const EXPIRES_AFTER = 10 * 60_000; // milliseconds; a tab that is restored days later sends nothing

export class Outbox {
  #storage;

  constructor(storage) {
    this.#storage = storage;
  }

  /** Keep a frame until `remove` is called with its client_id. */
  put(frame, now = Date.now()) {
    this.#write([...this.#read(), { frame, at: now }]);
  }

  /** Remove a frame and return it; undefined if there is none with this client_id. */
  remove(clientId) {
    const all = this.#read();
    const found = all.find(({ frame }) => frame.client_id === clientId);
    if (found) this.#write(all.filter((entry) => entry !== found));
    return found?.frame;
  }

  /** Put another frame in the place of the one with its client_id. */
  replace(frame) {
    this.#write(this.#read().map((entry) => (entry.frame.client_id === frame.client_id ? { ...entry, frame } : entry)));
  }

  /** The frames to send, oldest first. */
  pending(now = Date.now()) {
    return this.#read()
      .filter(({ at }) => now - at < EXPIRES_AFTER)
      .map(({ frame }) => frame);
  }

  /** Remove and return the frames that are too old to be sent without asking the user. */
  removeExpired(now = Date.now()) {
    const all = this.#read();
    const expired = all.filter(({ at }) => now - at >= EXPIRES_AFTER);
    if (expired.length) this.#write(all.filter((entry) => !expired.includes(entry)));
    return expired.map(({ frame }) => frame);
  }

  #read() {
    return JSON.parse(this.#storage.getItem(KEY) ?? "[]");
  }

  #write(all) {
    if (all.length) this.#storage.setItem(KEY, JSON.stringify(all));
    else this.#storage.removeItem(KEY);
  }
}
