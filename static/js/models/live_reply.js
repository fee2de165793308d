// A reply that is being generated: follows its run, and writes the reply as it streams in. Its element may be
// missing, when the page shows another branch of the chat; then only the end of the run matters.

import { isSelected } from "../helpers/dom.js";
import { gettext } from "../helpers/gettext.js";
import { prepareProse } from "../helpers/prose.js";
import { movementOf, placeBelow } from "../helpers/reading_place.js";
import { APPLY, END, GAP, RESTART, RunFollower, WAIT } from "./run_follower.js";
import { StreamWriter } from "./stream_writer.js";
import { Thinking } from "./thinking.js";
import { Wait } from "./wait.js";

const RESUME_AGAIN_AFTER = 2_000; // milliseconds between two requests for the same missing events
const READING = gettext("Reading your message…");

export class LiveReply {
  #follower;
  #writer = null;
  #thinking = null;
  #element;
  #scroll;
  #fire;
  #frame = null;
  #wait = null; // the wait for a worker
  #warning = null;
  #resumed = { last: -1, at: 0 };

  /** `element` is the pending reply, or null; `fire` sends an event of the transcript (name, detail). */
  constructor(run, element, { scroll, fire }) {
    this.#follower = new RunFollower(run);
    this.#element = element;
    this.#scroll = scroll;
    this.#fire = fire;
    if (element === null) return;
    this.#writer = new StreamWriter(
      element.querySelector(".stream:not([data-continued])"),
      element.querySelector(".reasoning-text"),
      isSelected,
    );
    this.#thinking = new Thinking(element.querySelector(".reasoning"), startedAt(element));
  }

  get run() {
    return this.#follower.run;
  }

  /** The position in its events: {run, after}. */
  get cursor() {
    return { run: this.#follower.run, after: this.#follower.last };
  }

  get hasStarted() {
    return this.#follower.hasStarted;
  }

  get element() {
    return this.#element;
  }

  /** Show an event of the run; returns whether it is the run's last one, which the caller shows. */
  receive(event) {
    switch (this.#follower.receive(event)) {
      case GAP:
        this.#requestMissing();
        break;
      case WAIT:
        this.showWait(event, event.attempt);
        break;
      case RESTART:
        this.#restart(event);
        break;
      case APPLY:
        this.#apply(event);
        break;
      case END:
        return true;
    }
    return false;
  }

  /** Show nothing from now on. */
  stop() {
    cancelAnimationFrame(this.#frame);
    clearTimeout(this.#warning);
    this.#thinking?.stop();
    this.#frame = null;
    this.#wait = null;
  }

  /** Write the part of the whole text that is not written yet. */
  complete(text) {
    this.#writer?.complete(text);
    this.#writer?.flush();
  }

  /** The text of the reply so far. */
  get text() {
    return this.#writer.text;
  }

  /** Put the parts of the finished reply around its text and its reasoning, which are in the page. */
  finish(finished) {
    const reply = this.#element;
    this.#flush();
    const stream = reply.querySelector(".stream:not([data-continued])");
    frame(reply, finished, stream);
    stream.className = "prose";
    const settle = () => {
      if (isSelected(stream.querySelector(".stream-tail"))) return; // it is formatted afterwards
      document.removeEventListener("selectionchange", settle);
      this.#scroll.follow(() => this.#flush());
      this.#writer.close();
    };
    document.addEventListener("selectionchange", settle);
    settle();
  }

  /** Show the queue position of the run, and a warning when it stops moving. */
  showWait(queued, attempt) {
    const reply = this.#element;
    if (reply === null) return;
    if (this.#wait?.attempt !== attempt) {
      this.#wait = new Wait(attempt, attempt === 1 ? queuedAt(reply) : Date.now());
    }
    this.#wait.update(queued);
    this.#showProgress(this.#wait.status);
    clearTimeout(this.#warning);
    const { warnAt } = this.#wait;
    if (warnAt !== null) this.#warning = setTimeout(() => this.#warn(), warnAt - Date.now());
  }

  // --- Internal

  #requestMissing() {
    const { last } = this.#follower;
    const now = Date.now();
    if (this.#resumed.last === last && now - this.#resumed.at < RESUME_AGAIN_AFTER) return;
    this.#resumed = { last, at: now };
    this.#fire("chat:resume", this.cursor);
  }

  #warn() {
    const notice = this.#element.querySelector("[data-no-worker]");
    if (!notice.hidden) return;
    this.#scroll.follow(() => {
      notice.hidden = false;
    });
    this.#fire("chat:announce", notice.textContent.trim());
  }

  #apply(event) {
    if (this.#element === null) return;
    switch (event.type) {
      case "run.started":
        this.#started(event.attempt);
        return;
      case "reasoning.delta":
        this.#writer.writeReasoning(event.text);
        break;
      case "text.delta":
        this.#writer.write(event.text);
        break;
      case "reply.blocks":
        this.#writer.addBlocks(event);
        break;
      case "tool.started":
        this.#removeCard(event.call);
        this.#hideProgress();
        break;
      case "tool.done":
        this.#removeCard(event.call);
        this.#showProgress(gettext("Reading the results…"));
        break;
      case "tool.waiting":
        this.#showCard(event);
        break;
      case "reply.replaced": // text turned out to be reasoning
        this.#writer.replaceWith(event.text ?? "", event.reasoning ?? "");
    }
    this.#drawSoon();
  }

  #started(attempt) {
    // A replayed start may belong to a lost attempt, while the run waits for the next one.
    const isLost = this.#wait !== null && this.#wait.attempt > attempt;
    if (!isLost) this.#endWait();
  }

  /** Show the reply as its next attempt begins with it, with a note if it starts over from nothing. */
  #restart({ text = "", reasoning = "" }) {
    const reply = this.#element;
    if (reply === null) return;
    this.#endWait();
    for (const cards of reply.querySelectorAll("[data-tool-cards]")) cards.remove();
    reply.querySelector("[data-continued]")?.remove(); // `text` begins with it
    const wasCleared = this.#writer.replaceWith(text, reasoning);
    if (wasCleared && text === "") {
      const note = reply.querySelector("[data-restarted]");
      note.hidden = false;
      this.#fire("chat:announce", note.textContent);
    }
    this.#drawSoon();
  }

  /** Show the card of a call that waits for the user's answer, below the reply. */
  #showCard({ call, html }) {
    this.#hideProgress();
    if (this.#element.querySelector(`[data-tool-card="${CSS.escape(call)}"]`) !== null) return;
    const card = document.createElement("div");
    card.dataset.toolCards = "";
    card.innerHTML = html; // by the server's template
    this.#scroll.follow(() => {
      this.#element.querySelector(".progress").before(card);
    });
    this.#fire("chat:announce", card.querySelector(".tool-card-title").textContent.trim());
  }

  #removeCard(call) {
    this.#element.querySelector(`[data-tool-card="${CSS.escape(call)}"]`)?.remove();
  }

  #hideProgress() {
    this.#element.querySelector(".progress").hidden = true;
  }

  #endWait() {
    clearTimeout(this.#warning);
    this.#wait = null;
    this.#element.querySelector("[data-no-worker]").hidden = true;
    this.#showProgress(READING);
  }

  #drawSoon() {
    this.#frame ??= requestAnimationFrame(() => this.#draw());
  }

  #draw() {
    this.#frame = null;
    const reply = this.#element;
    this.#scroll.follow(() => {
      this.#flush();
      const progress = reply.querySelector(".progress");
      const { hasReasoning, hasText } = this.#writer;
      reply.querySelector(".reasoning").hidden = !hasReasoning;
      this.#thinking.update(hasReasoning && this.#wait === null, hasText);
      progress.hidden = (hasText || this.#thinking.isActive) && this.#wait === null;
    });
    this.#fire("chat:scrolled");
  }

  /** Put all that has arrived into the page, without moving the line that a reader looks at. */
  #flush() {
    const tail = this.#element.querySelector(".stream-tail");
    const bar = document.querySelector(".topbar").offsetHeight;
    // Only text below the beginning of the tail can move.
    const isRead =
      this.#writer.hasNewBlocks && !this.#scroll.isFollowing && tail.getBoundingClientRect().top < bar;
    const place = isRead ? placeBelow(tail.parentElement, bar) : null;
    const added = this.#writer.flush();
    if (added.length > 0) prepareProse(added);
    if (place !== null) this.#scroll.shift(movementOf(place, tail.parentElement));
  }

  #showProgress(status) {
    const progress = this.#element.querySelector(".progress");
    progress.hidden = false;
    if (progress.textContent !== status) progress.textContent = status;
  }
}

/** The time at which the run of a freshly rendered reply was queued, by the clock of this machine. */
function queuedAt(reply) {
  const { queued, rendered } = reply.dataset; // by the server's clock, in seconds
  return Date.now() - 1_000 * (queued ? rendered - queued : 0);
}

/** The time at which the run of a freshly rendered reply was started, by the clock of this machine; or null. */
function startedAt(reply) {
  const { started, rendered } = reply.dataset;
  return started ? Date.now() - 1_000 * (rendered - started) : null;
}

/** Put the parts of a finished reply around its text, which stays, as does the reasoning. */
function frame(reply, finished, stream) {
  const reasoning = reply.querySelector(":scope > .reasoning");
  const fresh = finished.querySelector(":scope > .reasoning");
  for (const part of [...reply.children]) {
    if (part !== stream && (part !== reasoning || fresh === null)) part.remove();
  }
  if (fresh !== null) reasoning.querySelector("summary").replaceWith(fresh.querySelector("summary"));
  for (const { name, value } of finished.attributes) reply.setAttribute(name, value);
  let anchor = fresh === null ? stream : reasoning;
  let isAfter = false;
  for (const part of [...finished.children]) {
    if (part === fresh) anchor = stream;
    else if (part.matches(".prose")) isAfter = true;
    else if (isAfter) reply.append(part);
    else anchor.before(part);
  }
}
