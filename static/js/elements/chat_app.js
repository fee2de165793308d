import { showAppearance } from "../helpers/appearance.js";
import { fetchJSON, fetchPage, fromTemplate, nameConversation } from "../helpers/dom.js";
import { gettext } from "../helpers/gettext.js";
import { storageOf } from "../helpers/storage.js";
import { credits } from "../helpers/words.js";
import { Connection, NOT_SIGNED_IN, REFUSED, RESTARTING, TOO_MANY } from "../models/connection.js";
import { Draft } from "../models/draft.js";
import { EventFallback } from "../models/event_fallback.js";
import { Navigation } from "../models/navigation.js";
import { Sender } from "../models/sender.js";

const NOTICE_AFTER = 1_500; // milliseconds; most sockets are open again before that
const RESTART_NOTICE_AFTER = 5_000; // after close code 1012 the server is usually back soon
const PAUSE_AFTER = 60_000; // of a hidden tab
const RESUME_AFTER = 2; // seconds, when the server could not look up a run and named no time
// Milliseconds after which a tab whose session has ended connects once more: another tab of this
// browser may have changed the password, and the browser has a new session then.
const RENEWED_AFTER = 1_500;
const LEAVE_AFTER = 1_000; // milliseconds, the page of a deleted project
const CATCH_UP_WITHIN = 2_000; // spread, so that the tabs of a restarted server do not reload at once

/** A signed-in page: one socket, and the elements of the page that depend on it. */
export class ChatApp extends HTMLElement {
  connection = new Connection(() => new WebSocket(this.#socketUrl));
  navigation = new Navigation(this, () => this.transcript?.place ?? document.scrollingElement.scrollTop);
  #fallback = new EventFallback();
  #sizes = new ResizeObserver(() => this.transcript?.resized());
  #sender;
  #pause = null;
  #mayBeRenewed = false; // whether the session may have been replaced while the socket was open
  #mayHaveMissed = false; // a message after the reply that the page was made with
  #isStale = false;
  #delayedRun = null; // id of the followed run whose events the server cannot send yet
  #branch = null; // the leaf of the branch that is being fetched

  connectedCallback() {
    this.#sender = new Sender(this);
    this.#sender.start();
    this.#listenToParts();
    this.#listenToConnection();
    this.#listenToPage();
    this.navigation.addEventListener("leave", () => this.#left());
    this.navigation.addEventListener("arrive", ({ detail }) => this.#arrived(detail));
    this.navigation.start();
    this.#restore();
    this.connection.start();
  }

  // --- Lifecycle

  #listenToParts() {
    this.addEventListener("chat:run", ({ detail }) => this.#runChanged(detail));
    this.addEventListener("chat:resume", ({ detail }) => this.#resume(detail));
    this.addEventListener("chat:announce", ({ detail }) => this.#announce(detail));
    this.addEventListener("chat:error", ({ detail }) => this.#showError(detail));
    this.addEventListener("chat:stale", () => this.#catchUp());
    this.addEventListener("chat:listed", () => this.#read());
    this.addEventListener("chat:scrolled", () => this.#scrolled());
    this.addEventListener("click", (event) => {
      if (event.target.closest("[data-to-end]")) this.#jump();
    });
  }

  #listenToConnection() {
    this.connection.addEventListener("message", ({ detail }) => this.#receive(detail));
    this.connection.addEventListener("open", ({ detail }) => this.#opened(detail));
    this.connection.addEventListener("lost", ({ detail }) => this.#lost(detail));
    this.connection.addEventListener("ended", ({ detail }) => this.#ended(detail));
    this.#fallback.addEventListener("message", ({ detail }) => this.#receive(detail));
    this.#fallback.addEventListener("ended", () => this.#catchUp()); // no event has its title
  }

  #listenToPage() {
    addEventListener("online", () => this.#online());
    addEventListener("offline", () => this.#notice.showSoon(NOTICE_AFTER));
    document.addEventListener("visibilitychange", () => this.#visibilityChanged());
    addEventListener("pageshow", (event) => this.#returned(event));
    // A composer that grows and a keyboard that opens must not hide the end of the page.
    const resized = () => this.transcript?.resized();
    addEventListener("resize", resized);
    visualViewport.addEventListener("resize", resized);
  }

  /** Complete the page that the server rendered by the state of this tab. */
  #restore() {
    this.sidebar.current = this.transcript?.conversation ?? "";
    if (this.composer !== null) this.#sizes.observe(this.composer);
    if (this.transcript === null) return;
    this.#sender.restore();
    if (!this.transcript.isPast) this.transcript.followRendered();
    this.#scrolled();
  }

  // --- Another page, without a load

  /** The run of the page that is left goes on; its end is announced by `conversation.updated`. */
  #left() {
    this.#fallback.stop();
    this.#sizes.disconnect();
    this.#sender.forgetStops();
    this.#delayedRun = null;
    this.#isStale = this.#mayHaveMissed = false;
    this.#branch = null;
  }

  #arrived({ place }) {
    this.#restore();
    if (this.transcript === null) document.scrollingElement.scrollTop = place ?? 0;
    else if (place !== undefined) this.transcript.place = place;
    this.sidebar.close();
    this.#resumeAll();
    this.#announce(document.title);
    this.#read();
  }

  // --- Parts of the page

  get transcript() {
    return this.querySelector("chat-transcript");
  }

  get composer() {
    return this.querySelector("chat-composer");
  }

  get sidebar() {
    return this.querySelector("chat-sidebar");
  }

  /** The storage of this tab for the signed-in user. */
  get storage() {
    return storageOf(this.dataset.user);
  }

  /** Remove the greeting of a new chat, and the notices above it. */
  removeGreeting() {
    this.querySelector("[data-start]")?.remove();
    this.querySelector(".notices")?.remove();
  }

  get #notice() {
    return this.querySelector("connection-notice");
  }

  get #socketUrl() {
    const scheme = location.protocol === "https:" ? "wss:" : "ws:";
    return `${scheme}//${location.host}${this.dataset.socket}`;
  }

  get #page() {
    return `/c/${this.transcript.conversation}/`;
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
      case "delayed":
        this.#delayed(event);
        return;
      case "balance":
        this.#showBalance(event);
        return;
      case "settings.changed":
        showAppearance(event);
        this.querySelector("chat-keys").toggleAttribute("data-single-keys", event.single_keys);
        return;
      case "announcements.changed":
      case "document.updated":
      case "feedback.changed":
      case "transfer.updated":
      case "insight.updated":
      case "instructions.changed":
        this.dispatchEvent(new CustomEvent(event.type, { detail: event })); // to elements of the page
        return;
      case "project.updated":
        this.#projectUpdated(event);
        return;
      case "branch.selected":
        this.#showBranch(event);
        return;
      case "next.updated":
        this.#sender.accepted(event.client_id);
        if (event.conversation === this.transcript?.conversation) this.composer?.next.receive(event);
        return;
      case "draft.updated":
        this.composer?.receiveDraft(event);
        return;
      default:
        if (event.run === this.#delayedRun) {
          this.#delayedRun = null;
          this.#showError("");
        }
        this.transcript?.receive(event);
        this.querySelector("chat-shared:defined")?.receive(event);
    }
  }

  #delayed(event) {
    const isFollowed = this.transcript?.cursor(event.ref) !== undefined;
    if (isFollowed) this.#delayedRun = event.ref;
    if (isFollowed || this.#sender.isPending(event.ref)) {
      this.#showError(event.message);
    }
  }

  #queued(event) {
    const frame = this.#sender.accepted(event.client_id, event.conversation);
    if (frame !== undefined) this.composer?.showError(""); // of `delayed`
    const transcript = this.transcript;
    if (transcript === null || transcript.isPast) return;
    if (frame !== undefined && this.#sender.isOfPage(frame) && !transcript.conversation) {
      this.#adopt(event.conversation);
    }
    if (event.conversation !== transcript.conversation) return;
    if (event.model) this.composer?.models?.stored(event, frame !== undefined && frame.type !== "run.regenerate");
    if (frame?.type === "message.edit") this.composer.clear();
    const wasFollowed = transcript.cursor(event.run) !== undefined;
    transcript.queue(event, { own: frame !== undefined });
    // The server subscribes the socket that asked to the run; every other tab has to resume it.
    const cursor = transcript.cursor(event.run);
    if (frame === undefined && cursor !== undefined && !wasFollowed) this.#resume(cursor);
  }

  /** Turn the page of a new chat into the page of the chat just created, without a reload. */
  #adopt(id) {
    this.transcript.dataset.conversation = id;
    nameConversation(this, id);
    history.replaceState(history.state, "", this.#page);
    this.navigation.moved();
    this.composer.moved(id);
    this.querySelector("chat-temporary")?.begun();
    this.querySelector("[data-temporary]")?.remove();
    this.sidebar.current = id;
    this.querySelector("[data-chat-menu]").hidden = false;
    // `conversation.updated` may have arrived before `run.queued`.
    this.#rename(this.sidebar.title(id) ?? gettext("New chat"));
  }

  #updated(event) {
    this.sidebar.update(event);
    this.querySelector("chat-list")?.update(event);
    this.#read();
    if (event.conversation !== this.transcript?.conversation) return;
    if (event.deleted) this.#close();
    else if (event.restored && this.querySelector("[data-deleted]") !== null) this.navigation.reload();
    else {
      this.#rename(event.title);
      this.sidebar.projects.showIn(this, event.project);
    }
  }

  #projectUpdated(event) {
    this.sidebar.projects.update(event);
    if (event.deleted || event.restored) this.sidebar.reload();
    this.sidebar.projects.markRows();
    const list = this.querySelector("chat-list");
    if (list === null) return;
    if (list.dataset.project !== event.project) list.projectUpdated();
    else if (!event.deleted) this.navigation.reload();
    else {
      // Not in the tab that has deleted it, which is on its way to the next page.
      setTimeout(() => {
        if (list.isConnected) this.navigation.go(this.sidebar.projects.dataset.all);
      }, LEAVE_AFTER);
    }
  }

  /** Report that the shown chat was read, if it is unread and visible, and show the number of unread ones. */
  #read() {
    const current = this.transcript?.conversation;
    if (current && !document.hidden && this.sidebar.isUnread(current)) {
      if (this.connection.send({ type: "conversation.read", conversation: current })) this.sidebar.markRead(current);
    }
    const { unread } = this.sidebar;
    const name = document.title.replace(/^\(\d+\) /, "");
    document.title = unread > 0 ? `(${unread}) ${name}` : name;
  }

  /** The chat of this page was deleted: leave it to be read, and offer a new one for unsent text. */
  #close() {
    if (this.querySelector("[data-deleted]") !== null) return;
    const composer = this.composer; // null on the page of an earlier part
    const notice = fromTemplate(document.getElementById("chat-deleted"));
    const text = composer?.removeDraft() ?? "";
    notice.querySelector("[data-kept]").hidden = !text.trim();
    this.#sender.keepForNewChat(text);
    const hadFocus = composer?.contains(document.activeElement) ?? false;
    this.transcript.close();
    this.querySelector("[data-chat-menu]").hidden = true;
    composer?.remove();
    this.transcript.after(notice);
    if (hadFocus) notice.querySelector("a").focus({ preventScroll: true });
    this.#announce(notice.querySelector("p").innerText);
  }

  #rename(title) {
    this.querySelector("[data-title]").textContent = title;
    this.querySelector("[data-rename]").value = title;
    document.title = `${title} · ${this.dataset.site}`;
    this.#read();
  }

  #showBalance(event) {
    const chip = this.querySelector("[data-balance]");
    if (chip === null) return;
    const shown = credits(event.available);
    chip.querySelector("[data-balance-available]").textContent = shown;
    chip.dataset.low = event.low ?? "";
    chip.title = gettext("{amount} credits available", { amount: shown });
  }

  #refused(event) {
    if (event.code === "run_active" && this.#sender.queueInstead(event.ref)) return;
    if (event.ref?.startsWith("draft:")) {
      console.warn("The draft is kept in this tab alone", event.message);
      return;
    }
    const lacksCredits = event.code === "insufficient_credits";
    const frame = event.ref ? this.#sender.refused(event.ref) : undefined;
    if (frame !== undefined) {
      const retryAfter = frame.text === undefined ? null : event.retry_after;
      const lacksModel = ["model_unavailable", "no_vision"].includes(event.code) || event.code === "bad_setting";
      this.#showError(event.message, { lacksCredits, lacksModel, retryAfter });
      if (event.code === "not_found") this.#catchUp(); // the chat was probably deleted
      return;
    }
    const isFollowed = this.transcript?.cursor(event.ref) !== undefined;
    if (this.transcript?.isChoosing(event.ref)) this.transcript.refuseBranch();
    if (isFollowed && event.code === "not_found") {
      this.transcript.abandon(event.ref); // asking again would get the same answer
      this.#catchUp(); // the chat was probably deleted
    } else if (isFollowed) {
      const seconds = event.retry_after ?? RESUME_AFTER;
      setTimeout(() => this.#resumeIfFollowed(event.ref), 1_000 * seconds);
      if (!this.#sender.stopRefused(event.ref)) return;
      if (this.composer !== null) this.composer.run = event.ref; // enables Stop again
    }
    // A socket that is refused before `ready` has the connection notice, which goes once it is open.
    if (this.connection.isOpen) this.#showError(event.message);
  }

  #showError(message, offers = {}) {
    this.composer?.showError(message, offers);
  }

  /** Show the branch that this reader or the same user in another tab has chosen. */
  async #showBranch({ conversation, message, leaf }) {
    const transcript = this.transcript;
    if (conversation !== transcript?.conversation || transcript.isPast || leaf === this.#branch) return;
    if (!transcript.isChoosing(message)) {
      if (transcript.cursors.length > 0) this.#isStale = true; // followed when the reply has ended
      else if (transcript.lastMessage !== leaf) this.#catchUp();
      return;
    }
    this.#branch = leaf; // the event may come twice
    const { page } = await fetchPage(this.#page);
    this.#branch = null;
    if (!transcript.isConnected) return;
    if (page !== null) {
      transcript.showBranch(page);
      this.composer?.sync(page); // the model of a compared reply goes on
    } else location.assign(`${this.#page}#m-${message}`);
  }

  #resumeIfFollowed(run) {
    const cursor = this.transcript?.cursor(run);
    if (cursor !== undefined) this.#resume(cursor);
  }

  /** Follow the runs of a page that was just made; how many. */
  #resumeAll() {
    const cursors = this.transcript?.cursors ?? [];
    for (const cursor of cursors) this.#resume(cursor);
    this.#mayHaveMissed = cursors.length > 0;
    return cursors.length;
  }

  #resume(cursor) {
    this.connection.send({ type: "resume", ...cursor });
  }

  #runChanged(run) {
    if (this.composer !== null) this.composer.run = run;
    if (run === null) this.#sender.forgetStops();
    if (run !== null) return;
    if (this.#isStale) this.#catchUp();
    else if (this.#mayHaveMissed) this.#catchUpIfStale();
    this.#mayHaveMissed = false;
  }

  // --- The connection

  #opened({ isReconnect }) {
    this.#fallback.stop();
    if (String(this.connection.user) !== this.dataset.user) {
      location.reload(); // another user has signed in meanwhile: nothing of this page is theirs
      return;
    }
    this.#mayBeRenewed = true;
    const wasNoticed = !this.#notice.hidden;
    this.#notice.hide();
    this.#sender.resend();
    this.composer?.saveDraft();
    const followed = this.#resumeAll();
    this.#sender.resendStops();
    this.#read();
    if (isReconnect) {
      this.sidebar.forgetDeleted(); // a deletion may have been undone meanwhile
      setTimeout(() => this.#recover(wasNoticed), CATCH_UP_WITHIN * Math.random());
    }
    if (!isReconnect && followed === 0) this.#catchUpIfStale();
  }

  /** Show what was missed; a loss that the user has seen gets a sentence about its end. */
  async #recover(wasNoticed) {
    const isComplete = await this.#catchUp();
    if (!wasNoticed || !isComplete) return;
    this.dispatchEvent(new CustomEvent("chat:notice", { detail: this.#notice.dataset.resumed }));
  }

  /**
   * Check for messages that came between the rendering of the page and the opening of its socket: at once, or when
   * the reply that it follows has ended, as the next message may have been sent in between.
   */
  async #catchUpIfStale() {
    if (!this.transcript?.conversation || this.transcript.isPast) return;
    const transcript = this.transcript;
    const current = await fetchJSON(transcript.dataset.activeRun);
    if (transcript.cursors.length > 0 || !transcript.isConnected) return;
    // Without an answer the chat may have been deleted.
    if (current === null || current.leaf !== transcript.lastMessage) this.#catchUp();
  }

  /** Fetch the page again and show what this tab has missed; whether the page is complete now. */
  async #catchUp() {
    this.#isStale = true;
    const transcript = this.transcript;
    const url = transcript?.conversation ? this.#page : location.href;
    let { page, isMissing } = await fetchPage(url);
    const isLeft = transcript !== this.transcript || (transcript === null && url !== location.href);
    if (isLeft) return true; // the page that is shown now is newer
    if (isMissing && transcript?.conversation) {
      this.#close();
      ({ page } = await fetchPage(this.dataset.newChat)); // for its list of chats
    }
    if (page === null) return false;
    this.sidebar.replaceWith(page);
    this.querySelector("chat-list")?.replaceWith(page, (id) => this.sidebar.isDeleted(id));
    this.#read();
    this.composer?.sync(page);
    if (isMissing) return false;
    if (!transcript?.conversation) {
      this.#isStale = false;
      return true;
    }
    if (transcript.cursors.length > 0) return true; // repeated when the reply has ended
    this.#isStale = false;
    transcript.sync(page);
    this.#rename(page.querySelector("[data-title]").textContent);
    return true;
  }

  #lost({ code, message, seconds }) {
    if (REFUSED.has(code)) {
      this.#sender.returnAll();
      this.#showError(this.#notice.dataset.frameRefused);
    } else if (!this.connection.wasOpen && navigator.onLine) {
      this.#sender.postPending();
      for (const cursor of this.transcript?.cursors ?? []) this.#fallback.follow(cursor);
    }
    if (this.#fallback.isFollowing) this.#notice.hide();
    else if (code === TOO_MANY) this.#notice.showRefusal(message, seconds);
    else this.#notice.showSoon(code === RESTARTING ? RESTART_NOTICE_AFTER : NOTICE_AFTER);
  }

  #online() {
    this.connection.wake();
    // The socket may have survived the time without a network.
    if (this.connection.isOpen) this.#notice.hide();
    this.composer?.online();
  }

  #ended(code) {
    if (code === NOT_SIGNED_IN && this.#mayBeRenewed) {
      this.#mayBeRenewed = false;
      setTimeout(() => this.connection.start(), RENEWED_AFTER);
      return;
    }
    if (code === NOT_SIGNED_IN) {
      location.assign(`${this.dataset.signIn}?next=${encodeURIComponent(location.pathname)}`);
      return;
    }
    this.#notice.show(this.#notice.dataset.ended);
  }

  // --- The page

  #visibilityChanged() {
    clearTimeout(this.#pause);
    if (document.hidden) this.#pauseSoon();
    else {
      this.connection.wake();
      this.#read();
    }
  }

  /** Close the socket of a hidden tab, but not during a reply or with an unsent message. */
  #pauseSoon() {
    this.#pause = setTimeout(() => {
      const isIdle = !this.transcript?.cursors.length && !this.#sender.hasPending;
      if (isIdle) this.connection.pause();
      else this.#pauseSoon();
    }, PAUSE_AFTER);
  }

  /** The browser shows this page again as it left it, without the events of the time between. */
  #returned(event) {
    if (!event.persisted) return;
    this.connection.wake();
    this.#catchUp();
  }

  #scrolled() {
    const hasMessages = this.transcript.lastMessage !== null; // a new chat has no latest one
    if (this.composer !== null) this.composer.showsJump = hasMessages && !this.transcript.isNearEnd;
  }

  #jump() {
    this.transcript.toEnd();
    this.#scrolled();
    this.composer.focusField(); // the button is hidden now
  }

  #announce(sentence) {
    // Screen readers read the same sentence again only if it was removed first.
    const announcer = this.querySelector("[data-announcer]");
    announcer.textContent = "";
    setTimeout(() => {
      announcer.textContent = sentence;
    }, 50);
  }
}
