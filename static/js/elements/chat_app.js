import { fetchJSON, fetchPage, nameConversation } from "../helpers/dom.js";
import { newClientId } from "../helpers/ids.js";
import { storageOf } from "../helpers/storage.js";
import { Connection, NOT_SIGNED_IN, REFUSED, RESTARTING } from "../models/connection.js";
import { Draft } from "../models/draft.js";
import { Outbox } from "../models/outbox.js";

const MOST_BYTES = 64 * 1024; // of a frame; the server hangs up on a larger one
const NOTICE_AFTER = 1_500; // milliseconds; most losses are over before
const RESTART_NOTICE_AFTER = 5_000; // a server that restarts tells so, and is back soon
const PAUSE_AFTER = 60_000; // that a tab is hidden
const RESUME_AFTER = 2; // seconds, when the server could not look into a run and does not say
const CATCH_UP_WITHIN = 2_000; // so that not all tabs of a restarted server ask at once

/** A page of a signed-in person: one socket, and the parts of the page that live by it. */
export class ChatApp extends HTMLElement {
  connection = new Connection(() => new WebSocket(this.#socketUrl));
  #outbox;
  #notice = null;
  #pause = null;
  #stopping = null; // the run that was asked to stop
  #everOpen = false;
  #isStale = false;

  connectedCallback() {
    this.#outbox = new Outbox(this.#storage);
    this.#listenToParts();
    this.#listenToConnection();
    this.#listenToPage();
    if (this.#transcript !== null) this.#begin();
    this.connection.start();
  }

  // --- Lifecycle

  #listenToParts() {
    this.addEventListener("chat:send", (event) => this.#send(event));
    this.addEventListener("chat:run", ({ detail }) => this.#runChanged(detail));
    this.addEventListener("chat:resume", ({ detail }) => this.#resume(detail));
    this.addEventListener("chat:say", ({ detail }) => this.#say(detail));
    this.addEventListener("chat:tell", ({ detail }) => this.#complain(detail));
    this.addEventListener("chat:stale", () => this.#catchUp());
    this.addEventListener("chat:scrolled", () => this.#scrolled());
    this.addEventListener("submit", (event) => this.#submitted(event));
    this.querySelector("[data-to-end]")?.addEventListener("click", () => this.#jump());
  }

  #listenToConnection() {
    this.connection.addEventListener("message", ({ detail }) => this.#receive(detail));
    this.connection.addEventListener("open", ({ detail }) => this.#opened(detail));
    this.connection.addEventListener("lost", ({ detail }) => this.#lost(detail.code));
    this.connection.addEventListener("ended", ({ detail }) => this.#ended(detail));
  }

  #listenToPage() {
    addEventListener("online", () => this.#online());
    addEventListener("offline", () => this.#noticeSoon(NOTICE_AFTER));
    document.addEventListener("visibilitychange", () => this.#visibilityChanged());
  }

  #begin() {
    this.#sidebar.current = this.#transcript.conversation;
    for (const frame of this.#outbox.takeOld()) this.#giveBack(frame);
    for (const frame of this.#outbox.waiting()) {
      if (this.#belongsHere(frame)) this.#transcript.showSending(frame.client_id, frame.text);
    }
    if (!this.#transcript.isPast) this.#transcript.followRendered();
  }

  // --- Parts of the page

  get #transcript() {
    return this.querySelector("chat-transcript");
  }

  get #composer() {
    return this.querySelector("chat-composer");
  }

  get #sidebar() {
    return this.querySelector("chat-sidebar");
  }

  get #storage() {
    return storageOf(this.dataset.user);
  }

  get #socketUrl() {
    const scheme = location.protocol === "https:" ? "wss:" : "ws:";
    return `${scheme}//${location.host}${this.dataset.socket}`;
  }

  get #page() {
    return `/c/${this.#transcript.conversation}/`;
  }

  // --- Sending

  #send(event) {
    const { text, clientId, edit } = event.detail;
    const frame = edit
      ? { type: "message.edit", client_id: clientId, message: edit, text }
      : {
          type: "chat.send",
          client_id: clientId,
          conversation: this.#transcript.conversation || null,
          text,
        };
    if (!this.#dispatch(frame)) return; // the form goes by itself
    event.preventDefault();
    if (edit) return; // it stays what is edited until the server has taken it
    this.#transcript.showSending(clientId, text);
    this.#leaveStart();
    this.#composer.clear();
  }

  /** Send a frame that must arrive, now or as soon as the connection is there. */
  #dispatch(frame) {
    if (!this.connection.isPromising) return false;
    if (new TextEncoder().encode(JSON.stringify(frame)).length > MOST_BYTES) return false;
    this.#outbox.put(frame);
    if (!this.connection.send(frame)) this.connection.wake();
    return true;
  }

  /** Forms whose button says what it does; without a connection they go by themselves. */
  #submitted(event) {
    const button = event.submitter;
    if (button?.dataset.regenerate) this.#regenerate(event, button.dataset.regenerate);
    else if (button?.dataset.stop) this.#stop(event, button);
    else if (event.target.matches("[data-prompts]")) this.#prompt(event, button.value);
  }

  #regenerate(event, message) {
    const frame = { type: "run.regenerate", client_id: newClientId(), message };
    if (!this.#dispatch(frame)) return;
    event.preventDefault();
    this.#composer.tell("");
  }

  #stop(event, button) {
    this.#stopping = button.dataset.stop;
    if (!this.connection.send({ type: "run.stop", run: this.#stopping })) {
      if (!this.#everOpen) return;
      this.connection.wake(); // and then it is sent
    }
    event.preventDefault();
    button.disabled = true;
  }

  #prompt(event, text) {
    const detail = { text, clientId: newClientId() };
    const send = new CustomEvent("chat:send", { detail, bubbles: true, cancelable: true });
    if (!this.dispatchEvent(send)) event.preventDefault();
  }

  #belongsHere(frame) {
    return (
      frame.type === "chat.send" &&
      (frame.conversation ?? "") === this.#transcript?.conversation
    );
  }

  /** A frame that was not taken: its text goes back to where it was typed. */
  #giveBack(frame) {
    if (frame.type === "message.edit") {
      new Draft(this.#storage, `edit:${frame.message}`).text = frame.text;
    } else if (frame.type === "chat.send" && this.#belongsHere(frame)) {
      this.#transcript.unsend(frame.client_id);
      this.#composer?.restore(frame.text);
    } else if (frame.type === "chat.send") {
      new Draft(this.#storage, frame.conversation ?? "new").text = frame.text;
    }
  }

  // --- Receiving

  #receive(event) {
    switch (event.type) {
      case "run.queued":
        this.#queued(event);
        return;
      case "conversation.updated":
        this.#updated(event);
        return;
      case "error":
        this.#refused(event);
        return;
      case "balance":
        this.#showBalance(event);
        return;
      default:
        this.#transcript?.take(event);
    }
  }

  #queued(event) {
    const frame = this.#outbox.take(event.client_id);
    const transcript = this.#transcript;
    if (transcript === null || transcript.isPast) return;
    if (frame !== undefined && this.#belongsHere(frame) && !transcript.conversation) {
      this.#adopt(event.conversation);
    }
    if (event.conversation !== transcript.conversation) return;
    if (frame?.type === "message.edit") this.#composer.clear();
    const followed = transcript.cursor?.run;
    transcript.queue(event, { own: frame !== undefined });
    // The server lets the socket that asked follow by itself; this one has only heard of it.
    const cursor = transcript.cursor;
    if (frame === undefined && cursor !== null && cursor.run !== followed) this.#resume(cursor);
  }

  /** The new chat of this page exists now: the page becomes its page, without being loaded again. */
  #adopt(id) {
    this.#transcript.dataset.conversation = id;
    nameConversation(this, id);
    history.replaceState(history.state, "", this.#page);
    this.#composer.moved(id);
    this.#sidebar.current = id;
    this.querySelector("[data-chat-menu]").hidden = false;
    // The news of its name may have come before that of its first message.
    this.#rename(this.#sidebar.title(id) ?? "New chat");
  }

  /** What stood on the page for who had not written yet. */
  #leaveStart() {
    this.querySelector("[data-start]")?.remove();
    this.querySelector(".notices")?.remove();
  }

  #updated(event) {
    this.#sidebar.update(event);
    if (event.conversation !== this.#transcript?.conversation) return;
    if (event.deleted) {
      this.#showNotice("This chat was deleted. Start a new one or open another.");
      this.#composer?.remove();
      return;
    }
    this.#rename(event.title);
  }

  #rename(title) {
    this.querySelector("[data-title]").textContent = title;
    this.querySelector("[data-rename]").value = title;
    document.title = `${title} · ${this.dataset.site}`;
  }

  #showBalance(event) {
    const chip = this.querySelector("[data-balance]");
    if (chip === null) return;
    chip.querySelector("[data-balance-available]").textContent = event.shown;
    chip.dataset.low = event.low ?? "";
    chip.title = `${event.shown} credits available`;
  }

  #refused(event) {
    const lacksCredits = event.code === "insufficient_credits";
    const frame = event.ref ? this.#outbox.take(event.ref) : undefined;
    if (frame !== undefined) {
      this.#giveBack(frame);
      const retryAfter = frame.type === "run.regenerate" ? null : event.retry_after;
      this.#complain(event.message, { lacksCredits, retryAfter });
      return;
    }
    if (event.ref && event.ref === this.#transcript?.cursor?.run) {
      const seconds = event.retry_after ?? RESUME_AFTER;
      setTimeout(() => this.#resumeIfFollowed(event.ref), 1_000 * seconds);
      if (event.ref !== this.#stopping) return;
      this.#stopping = null;
      this.#composer.run = event.ref; // Stop may be pressed again
    }
    // Who is turned away at the door hears of it by the notice, which goes when the door is open.
    if (this.connection.isOpen) this.#complain(event.message);
  }

  /** Say what went wrong where one writes, without covering the end of the page. */
  #complain(message, offers = {}) {
    const isAtEnd = this.#transcript?.isAtEnd ?? false;
    this.#composer?.tell(message, offers);
    if (isAtEnd) this.#transcript.toEnd();
  }

  #resumeIfFollowed(run) {
    const cursor = this.#transcript.cursor;
    if (cursor?.run === run) this.#resume(cursor);
  }

  #resume(cursor) {
    this.connection.send({ type: "resume", ...cursor });
  }

  #runChanged(run) {
    if (this.#composer !== null) this.#composer.run = run;
    this.#stopping = null;
    if (run === null && this.#isStale) this.#catchUp();
  }

  // --- The connection

  #opened({ again }) {
    this.#everOpen = true;
    this.#hideNotice();
    for (const frame of this.#outbox.waiting()) this.connection.send(frame);
    const cursor = this.#transcript?.cursor ?? null;
    if (cursor !== null) this.#resume(cursor);
    if (this.#stopping !== null) this.connection.send({ type: "run.stop", run: this.#stopping });
    if (again) setTimeout(() => this.#catchUp(), CATCH_UP_WITHIN * Math.random());
    else if (cursor === null) this.#compare();
  }

  /** What happened between the rendering of the page and the opening of its socket? */
  async #compare() {
    if (!this.#transcript?.conversation || this.#transcript.isPast) return;
    const stands = await fetchJSON(this.#transcript.dataset.activeRun);
    if (stands === null || this.#transcript.cursor !== null) return;
    if (stands.leaf !== this.#transcript.lastMessage) this.#catchUp();
  }

  /** Fetch the page and take over what this one has missed. */
  async #catchUp() {
    this.#isStale = true;
    const transcript = this.#transcript;
    const url = transcript?.conversation ? this.#page : location.href;
    const page = await fetchPage(url);
    if (page === null) return;
    this.#sidebar.replaceWith(page);
    if (!transcript?.conversation) {
      this.#isStale = false;
      return;
    }
    if (transcript.cursor !== null) return; // once more when the reply is finished
    this.#isStale = false;
    transcript.sync(page);
    this.#rename(page.querySelector("[data-title]").textContent);
  }

  #lost(code) {
    if (REFUSED.has(code)) this.#takeBack();
    else if (!this.#everOpen && navigator.onLine) this.#postWhatWaits();
    this.#noticeSoon(code === RESTARTING ? RESTART_NOTICE_AFTER : NOTICE_AFTER);
  }

  #noticeSoon(delay) {
    this.#notice ??= setTimeout(() => this.#tellOfLoss(), delay);
  }

  #online() {
    this.connection.wake();
    // It may have outlived the moment without a network.
    if (this.connection.isOpen) this.#hideNotice();
  }

  #takeBack() {
    for (const frame of this.#outbox.waiting()) {
      this.#outbox.take(frame.client_id);
      this.#giveBack(frame);
    }
    this.#complain("The server could not take this message. Shorten it or send it in parts.");
  }

  /** No socket to be had at all: what was given to it goes as a form. */
  #postWhatWaits() {
    for (const frame of this.#outbox.waiting()) {
      if (this.#composer === null || !this.#belongsHere(frame)) continue;
      this.#outbox.take(frame.client_id);
      this.#composer.post(frame.text, frame.client_id);
      return;
    }
  }

  #tellOfLoss() {
    if (document.hidden) return;
    this.#showNotice(
      navigator.onLine
        ? "Connection lost. Reconnecting…"
        : "You are offline. What you write is kept here.",
    );
  }

  #ended(code) {
    if (code === NOT_SIGNED_IN) {
      location.assign(`${this.dataset.signIn}?next=${encodeURIComponent(location.pathname)}`);
      return;
    }
    this.#showNotice("This page has lost its connection for good. Reload it.");
  }

  #showNotice(words) {
    this.querySelector("[data-connection-text]").textContent = words;
    this.querySelector("[data-connection]").hidden = false;
    this.#say(words);
  }

  #hideNotice() {
    clearTimeout(this.#notice);
    this.#notice = null;
    const notice = this.querySelector("[data-connection]");
    if (!notice.hidden) this.#say("Connected again");
    notice.hidden = true;
  }

  // --- The page

  #visibilityChanged() {
    clearTimeout(this.#pause);
    if (document.hidden) this.#pauseSoon();
    else this.connection.wake();
  }

  /** Hang up while nobody looks, but not while a reply is under way or something is unsent. */
  #pauseSoon() {
    this.#pause = setTimeout(() => {
      const isIdle = !this.#transcript?.cursor && this.#outbox.waiting().length === 0;
      if (isIdle) this.connection.pause();
      else this.#pauseSoon();
    }, PAUSE_AFTER);
  }

  #scrolled() {
    if (this.#composer !== null) this.#composer.showsJump = !this.#transcript.isAtEnd;
  }

  #jump() {
    this.#transcript.toEnd();
    this.#scrolled();
  }

  #say(words) {
    // The same words again are only read when they are taken away first.
    const announcer = this.querySelector("[data-announcer]");
    announcer.textContent = "";
    setTimeout(() => {
      announcer.textContent = words;
    }, 50);
  }
}
