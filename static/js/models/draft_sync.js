// The draft of one page on the user's other devices: stored by the server when nothing was typed for a second, and
// shown here when another device has stored a newer one.

import { debounce } from "../helpers/timing.js";

const SAVE_AFTER = 1_000; // milliseconds without a key
const SAVE_WITHIN = 5_000; // of an edit, while the user goes on typing
const MAX_BYTES = 60_000; // of a text that fits into a frame
const BEING_TYPED = 30_000; // after an edit, in which no other text replaces it

export class DraftSync {
  #storage;
  #send;
  #now;
  #page;
  #stored = ""; // as the server has it
  #saved = []; // the last texts that were sent to the server
  #cleared = []; // those of them that were cleared since: their late answers show nothing
  #text = ""; // as it was last edited here
  #editedAt = null; // time of an edit that the server does not have
  #dirtySince = null;
  #typedAt = -Infinity;
  #saveSoon = debounce(() => this.flush(), SAVE_AFTER);

  /**
   * `send(frame)` returns whether the frame was sent; `page` is the id of a conversation, "new", or null for a text
   * that stays here.
   */
  constructor(storage, page, send, now = Date.now) {
    this.#storage = storage;
    this.#page = page;
    this.#send = send;
    this.#now = now;
  }

  /** Whether the server has a draft, which the next message then empties. */
  get isStored() {
    return this.#page !== null && this.#stored !== "";
  }

  /**
   * The page was loaded with the server's draft (`text`, typed `age` milliseconds ago, null without one) and with the
   * one of this tab. Returns the text to show.
   */
  load(local, text, age) {
    if (this.#page === null) return local || text;
    const state = JSON.parse(this.#storage.getItem(this.#key) ?? "{}");
    const isRefused = age === null && text !== ""; // a form, whose text is at least as new as that of this tab
    this.#stored = isRefused ? "" : text;
    const serverAt = age === null ? -Infinity : this.#now() - age;
    const isNewer = local !== "" && !state.isSynced && (state.at === undefined || state.at >= serverAt);
    this.#text = isNewer ? local : text;
    if (this.#text !== this.#stored) this.#touch(state.at ?? this.#now());
    return this.#text;
  }

  /** The user has changed the text. */
  edited(text) {
    if (this.#page === null || text === this.#text) return;
    this.#text = text;
    this.#typedAt = this.#now();
    this.#touch(this.#typedAt);
  }

  /** Store an edit that the server does not have now. */
  flush() {
    this.#saveSoon.cancel();
    if (this.#editedAt === null || new TextEncoder().encode(JSON.stringify(this.#text)).length > MAX_BYTES) return;
    const age = Math.max(0, this.#now() - this.#editedAt);
    const conversation = this.#page === "new" ? {} : { conversation: this.#page };
    if (!this.#send({ type: "draft.save", text: this.#text, age, ...conversation })) return; // later: `flush` at `open`
    this.#stored = this.#text;
    this.#saved = [...this.#saved, this.#text].slice(-5);
    this.#cleared = this.#cleared.filter((text) => text !== this.#text);
    this.#editedAt = this.#dirtySince = null;
  }

  /** The message was sent, or is discarded: nothing of it is stored any longer. */
  clear() {
    this.#saveSoon.cancel();
    this.#cleared = this.#saved;
    this.#saved = [];
    this.#stored = this.#text = "";
    this.#editedAt = this.#dirtySince = null;
    this.#storage.removeItem(this.#key);
  }

  /** A new chat has got its address. */
  moved(page) {
    this.clear();
    this.#page = page;
  }

  /** Return the text of a `draft.updated` event if it is to be shown, else null. */
  received({ conversation = null, text = "" }) {
    if (this.#page === null || (conversation ?? "new") !== this.#page) return null;
    if (text !== "" && this.#cleared.includes(text)) return null;
    if (text === this.#stored) {
      if (this.#editedAt === null) this.#remember(true); // the server has it
      return null;
    }
    const isShown = this.#text === this.#stored; // nothing unsaved
    this.#stored = text;
    const isTyping = this.#text !== "" && this.#now() - this.#typedAt < BEING_TYPED;
    if (!isShown || isTyping || text === this.#text) return null;
    this.#text = text;
    this.#remember(true);
    return text;
  }

  get #key() {
    return `draft-state:${this.#page}`;
  }

  #touch(at) {
    this.#editedAt = at;
    this.#dirtySince ??= this.#now();
    this.#remember(false);
    if (this.#now() - this.#dirtySince >= SAVE_WITHIN) this.flush();
    else this.#saveSoon();
  }

  /** Keep the time of the last edit, and whether the server has confirmed it. */
  #remember(isSynced) {
    this.#storage.setItem(this.#key, JSON.stringify({ at: this.#editedAt ?? this.#now(), isSynced }));
  }
}
