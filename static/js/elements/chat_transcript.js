import { copy, needsTextAtHand } from "../helpers/clipboard.js";
import { fetchJSON, fetchPage, fromHTML, fromTemplate } from "../helpers/dom.js";
import { NO_ID } from "../helpers/ids.js";
import { movementOf, placeBelow } from "../helpers/reading_place.js";
import { listenForScrolling } from "../helpers/scroll_intent.js";
import { APPLY, END, GAP, IGNORE, RESTART, RunFollower, WAIT } from "../models/run_follower.js";
import { ReplySources } from "../models/reply_sources.js";
import { ScrollManager } from "../models/scroll_manager.js";
import { StreamWriter } from "../models/stream_writer.js";
import { Wait } from "../models/wait.js";

const RESUME_AGAIN_AFTER = 2_000; // milliseconds between two requests for the same missing events
const COPIED_FOR = 2_000; // milliseconds
const READING = "Reading your message…";
const THINKING = "Thinking…";

/**
 * The messages of the page. Follows one run at a time and shows its reply as it streams in.
 *
 * Fires "chat:run" (detail: the id of the run that is followed, or null), "chat:resume" ({run,
 * after}), "chat:announce" (a sentence for the live region), "chat:error" (a sentence for the
 * composer), "chat:stale" (the page must be fetched again) and "chat:scrolled".
 */
export class ChatTranscript extends HTMLElement {
  #scroll = new ScrollManager(document.scrollingElement);
  #follower = null;
  #writer = null;
  #frame = null;
  #wait = null; // the wait for a worker
  #warning = null;
  #replaced = null; // the messages that a new reply replaced: {run, after, items}
  #resumed = { last: -1, at: 0 };
  #sources = new ReplySources((run) => this.#fetchSource(run));
  #visible = new IntersectionObserver((entries) => this.#prefetch(entries));

  connectedCallback() {
    history.scrollRestoration = "manual";
    this.addEventListener("click", (event) => this.#clicked(event));
    this.addEventListener("toggle", () => this.#toggled(), { capture: true });
    addEventListener("scroll", () => this.#scrolled(), { passive: true });
    document.addEventListener("selectionchange", () => {
      if (isSelected(this)) this.#scroll.stop(); // text must not move away from under the pointer
    });
    listenForScrolling({ up: () => this.#scroll.stop(), down: () => this.#scroll.down() });
    this.#prepare(this);
    const edited = this.querySelector("[data-edited]");
    if (edited !== null) edited.scrollIntoView({ block: "center" });
    else if (!this.isPast && !location.hash.startsWith("#m-")) this.#scroll.toEnd();
  }

  get conversation() {
    return this.dataset.conversation;
  }

  /** Whether the page shows an earlier part of the conversation, where nothing new arrives. */
  get isPast() {
    return this.hasAttribute("data-past");
  }

  get isNearEnd() {
    return this.#scroll.isNearEnd;
  }

  /** The run that is followed: {run, after}, or null. */
  get cursor() {
    if (this.#follower === null) return null;
    return { run: this.#follower.run, after: this.#follower.last };
  }

  get lastMessage() {
    return this.#items.at(-1)?.dataset.id ?? null;
  }

  toEnd() {
    this.#scroll.toEnd();
  }

  /** The window or the composer has another height: keep the end in view for a reader who follows. */
  resized() {
    this.#scroll.resized();
  }

  /** Follow the run that the page was rendered with, if there is one. */
  followRendered() {
    if (this.dataset.run) this.#follow(this.dataset.run, this.#items.at(-1));
  }

  /** Show the user's message before the server has it. */
  showSending(clientId, text) {
    if (this.#sending(clientId)) return;
    const item = fromTemplate(document.getElementById("own-message"));
    item.dataset.pending = clientId;
    item.querySelector(".own-text").textContent = text;
    this.#scroll.follow(() => this.#list.append(item), { always: true });
  }

  /** Remove the message that `showSending` showed. */
  unsend(clientId) {
    this.#sending(clientId)?.remove();
  }

  /** Show nothing new from now on except the end of the run that is followed. */
  close() {
    this.toggleAttribute("data-past", true);
    const edited = this.querySelector("[data-edited]");
    edited?.removeAttribute("data-edited");
    edited?.querySelector(".own-state").remove();
  }

  /** Show the messages of a `run.queued` event and follow its run. */
  queue(event, { own }) {
    const shown = this.#find(event.reply.id);
    const isFollowed = this.#follower?.run === event.run;
    if (isFollowed || (shown !== null && shown.dataset.status !== "pending")) {
      // The page was fetched anew after the message was stored and before this event came.
      this.unsend(event.client_id);
      if (isFollowed && !this.#follower.hasStarted) this.#showWait(event, 1);
      return;
    }
    this.#scroll.follow(
      () => {
        this.unsend(event.client_id);
        if (shown === null) this.#place(event);
      },
      { always: own },
    );
    const reply = this.#find(event.reply.id);
    if (reply === null) return;
    this.#follow(event.run, reply);
    this.#showWait(event, 1);
  }

  /** Show an event of the run that is followed; events of other runs do nothing. */
  receive(event) {
    if (this.#follower === null) return;
    switch (this.#follower.receive(event)) {
      case IGNORE:
        return;
      case GAP:
        this.#requestMissing();
        return;
      case WAIT:
        this.#showWait(event, event.attempt);
        return;
      case RESTART:
        this.#restart(event);
        return;
      case APPLY:
        this.#apply(event);
        return;
      case END:
        this.#end(event);
    }
  }

  /** Follow the run no longer: the server does not find it. */
  abandon() {
    this.#unfollow();
  }

  /** Replace the messages by those of a fetched page, if they differ. */
  sync(page) {
    const fresh = page.querySelector("chat-transcript");
    if (fresh === null || this.isPast) return;
    const run = fresh.dataset.run ?? null;
    if (run !== null && run === this.#follower?.run) return;
    const items = [...fresh.querySelectorAll(".messages > li")];
    if (run === null && this.#isSame(items)) return;
    const sending = this.#items.filter((item) => item.dataset.pending);
    this.#unfollow();
    this.#scroll.follow(() => this.#arrange([...items, ...sending]));
    this.#prepare(this);
    if (run !== null) {
      this.#follow(run, items.at(-1));
      this.#fire("chat:resume", this.cursor);
    }
  }

  // --- Internal: placing messages

  get #list() {
    return this.querySelector(".messages");
  }

  get #items() {
    return [...this.#list.children];
  }

  #find(id) {
    return document.getElementById(`m-${id}`);
  }

  #sending(clientId) {
    return this.#list.querySelector(`[data-pending="${clientId}"]`);
  }

  #isSame(items) {
    const mine = this.#items.filter((item) => !item.dataset.pending);
    return mine.map(versionOf).join() === items.map(versionOf).join();
  }

  /** Show these messages. Finished ones that are shown already stay, with a selection in their text. */
  #arrange(items) {
    const shown = new Map(this.#items.map((item) => [versionOf(item), item]));
    const wanted = items.map((item) => {
      if (item.parentNode === this.#list) return item; // being sent
      const same = shown.get(versionOf(item));
      return same !== undefined && canStay(same, item) ? same : item;
    });
    for (const item of this.#items) if (!wanted.includes(item)) item.remove();
    wanted.forEach((item, index) => {
      const here = this.#list.children[index] ?? null;
      if (here !== item) this.#list.insertBefore(item, here);
    });
  }

  #place(event) {
    const sent = event.sent ? this.#find(event.sent.id) : null;
    const parent = event.parent ? this.#find(event.parent) : null;
    if (sent === null && event.parent && parent === null) {
      // The reply follows a message that this page does not show.
      this.#fire("chat:stale");
      return;
    }
    const before = sent ?? parent;
    const items = this.#items;
    const replaced = items.slice(items.indexOf(before) + 1);
    const hadFocus = replaced.some((item) => item.contains(document.activeElement));
    for (const item of replaced) item.remove();
    this.#replaced = sent === null ? null : { run: event.run, after: sent, items: replaced };
    if (sent === null && event.sent) this.#list.append(fromHTML(event.sent.html));
    const reply = fromHTML(event.reply.html);
    this.#list.append(reply);
    if (hadFocus) reply.focus({ preventScroll: true });
  }

  // --- Internal: following a run

  #follow(run, reply) {
    this.#follower = new RunFollower(run);
    this.#writer = new StreamWriter(
      reply.querySelector(".stream"),
      reply.querySelector(".reasoning-text"),
    );
    this.#list.setAttribute("data-busy", "");
    this.#fire("chat:run", run);
  }

  #unfollow() {
    cancelAnimationFrame(this.#frame);
    clearTimeout(this.#warning);
    this.#frame = null;
    this.#wait = null;
    this.#follower = null;
    this.#writer = null;
    this.#list.removeAttribute("data-busy");
    this.#fire("chat:run", null);
  }

  get #reply() {
    return this.#list.querySelector(`[data-run="${this.#follower.run}"]`);
  }

  #requestMissing() {
    const { last } = this.#follower;
    const now = Date.now();
    if (this.#resumed.last === last && now - this.#resumed.at < RESUME_AGAIN_AFTER) return;
    this.#resumed = { last, at: now };
    this.#fire("chat:resume", this.cursor);
  }

  /** Show the queue position of the run, and a warning when it stops moving. */
  #showWait(queued, attempt) {
    const reply = this.#reply;
    if (this.#wait?.attempt !== attempt) {
      this.#wait = new Wait(attempt, attempt === 1 ? queuedAt(reply) : Date.now());
    }
    this.#wait.update(queued);
    this.#showProgress(reply, this.#wait.status);
    clearTimeout(this.#warning);
    const { warnAt } = this.#wait;
    if (warnAt !== null) this.#warning = setTimeout(() => this.#warn(), warnAt - Date.now());
  }

  #warn() {
    const notice = this.#reply.querySelector("[data-no-worker]");
    if (!notice.hidden) return;
    this.#scroll.follow(() => {
      notice.hidden = false;
    });
    this.#fire("chat:announce", notice.textContent.trim());
  }

  #started(attempt) {
    // A replayed start may belong to a lost attempt, while the run waits for the next one.
    const isLost = this.#wait !== null && this.#wait.attempt > attempt;
    if (!isLost) this.#endWait(this.#reply);
  }

  #endWait(reply) {
    clearTimeout(this.#warning);
    this.#wait = null;
    reply.querySelector("[data-no-worker]").hidden = true;
    this.#showProgress(reply, READING);
  }

  /** Show the reply as its next attempt begins with it, with a note if it starts over from nothing. */
  #restart({ text = "", reasoning = "" }) {
    const reply = this.#reply;
    this.#endWait(reply);
    const wasCleared = this.#writer.replaceWith(text, reasoning);
    if (wasCleared && text === "") {
      const note = reply.querySelector("[data-restarted]");
      note.hidden = false;
      this.#fire("chat:announce", note.textContent);
    }
    this.#drawSoon();
  }

  #apply(event) {
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
      case "reply.replaced": // text turned out to be reasoning
        this.#writer.replaceWith(event.text ?? "", event.reasoning ?? "");
    }
    this.#drawSoon();
  }

  #drawSoon() {
    this.#frame ??= requestAnimationFrame(() => this.#draw());
  }

  #draw() {
    this.#frame = null;
    const reply = this.#reply;
    this.#scroll.follow(() => {
      this.#writer.flush();
      const progress = reply.querySelector(".progress");
      progress.hidden = this.#writer.hasText && this.#wait === null;
      const reasoning = reply.querySelector(".reasoning");
      const isNew = reasoning.hidden && this.#writer.hasReasoning;
      if (isNew && this.#wait === null) progress.textContent = THINKING;
      reasoning.hidden = !this.#writer.hasReasoning;
    });
    this.#fire("chat:scrolled");
  }

  #showProgress(reply, status) {
    const progress = reply.querySelector(".progress");
    progress.hidden = false;
    if (progress.textContent !== status) progress.textContent = status;
  }

  #end(event) {
    const reply = this.#find(event.reply);
    const replaced = this.#replaced;
    this.#replaced = null;
    if (event.type === "run.failed" && replaced?.run === event.run && replaced.items.length) {
      this.#scroll.follow(() => {
        reply?.remove();
        replaced.after.after(...replaced.items);
      });
      this.#fire("chat:error", `${event.message} The previous reply is restored.`);
    } else {
      this.#scroll.follow(() => this.#finish(reply, event));
      this.#fire("chat:announce", ending(event));
    }
    this.#unfollow();
    this.#fire("chat:scrolled");
  }

  #finish(reply, event) {
    this.#sources.put(event.run, event.text);
    const finished = fromHTML(event.html);
    if (reply !== null && isSelected(reply)) {
      this.#writer.complete(event.text);
      this.#writer.flush();
      this.#finishSelected(reply, finished);
      return;
    }
    keepOpen(reply, finished);
    const hadFocus = reply?.contains(document.activeElement) ?? false;
    if (reply === null) this.#list.append(finished);
    else this.#keepLine(reply, () => reply.replaceWith(finished), finished);
    this.#prepare(finished);
    if (hadFocus) finished.focus({ preventScroll: true });
  }

  /** Finish a reply in which text is selected: that text is replaced when the selection has ended. */
  #finishSelected(reply, finished) {
    for (const { name, value } of finished.attributes) reply.setAttribute(name, value);
    for (const part of reply.querySelectorAll(".progress, .notice")) part.remove();
    reply.append(...finished.querySelectorAll(":scope > :is(.notice, .actions)"));
    const replace = () => {
      if (isSelected(reply)) return;
      document.removeEventListener("selectionchange", replace);
      keepOpen(reply, finished);
      const swap = () => {
        const streamed = reply.querySelectorAll(".stream, .reasoning, .reply-note");
        reply.querySelector(".stream").before(...finished.querySelectorAll(":scope > :is(.reasoning, .prose)"));
        for (const part of streamed) part.remove();
        this.#prepare(reply);
      };
      this.#scroll.follow(() => this.#keepLine(reply, swap, reply));
    };
    document.addEventListener("selectionchange", replace);
  }

  // --- Internal: scrolling

  #scrolled() {
    this.#scroll.moved();
    this.#fire("chat:scrolled");
  }

  /** Put the HTML of a reply into its place with `swap`, without moving the line that a reader looks at. */
  #keepLine(reply, swap, finished) {
    const stream = reply.querySelector(".stream");
    const bar = document.querySelector(".topbar").offsetHeight;
    const place = this.#scroll.isFollowing || stream === null ? null : placeBelow(stream, bar);
    swap();
    const prose = finished.querySelector(".prose");
    if (place !== null && prose !== null) this.#scroll.shift(movementOf(place, prose));
  }

  /** The reader has opened or closed the reasoning: an opened text is to be read from its beginning. */
  #toggled() {
    if (this.#scroll.isAtEnd) this.#scroll.toEnd();
    this.#fire("chat:scrolled");
  }

  // --- Internal: actions on a message

  /** Add the parts that need the script to messages rendered by the server. */
  #prepare(root) {
    this.#watchReplies();
    for (const link of root.querySelectorAll(".prose a")) link.toggleAttribute("data-bare", isAddress(link));
    for (const code of root.querySelectorAll(".code:not(:has(> .action))")) {
      const button = fromTemplate(document.getElementById("copy-code"));
      code.querySelector("pre").before(button);
    }
  }

  #clicked(event) {
    if (event.target.closest("details:not([open]) > summary")) this.#scroll.stop(); // `#toggled` follows again
    const button = event.target.closest("[data-copy], [data-copy-code]");
    if (button !== null) this.#copy(button);
    const earlier = event.target.closest("[data-earlier]");
    if (earlier !== null && !event.ctrlKey && !event.metaKey && !event.shiftKey) {
      event.preventDefault();
      this.#showEarlier(earlier);
    }
  }

  async #copy(button) {
    try {
      await copy(this.#textFor(button));
    } catch (error) {
      console.warn("Copying failed", error);
      this.#fire("chat:error", "The browser blocked copying. Select the text and copy it by hand.");
      return;
    }
    const use = button.querySelector("use");
    use.setAttribute("href", "#i-check");
    setTimeout(() => use.setAttribute("href", "#i-copy"), COPIED_FOR);
    this.#fire("chat:announce", "Copied");
  }

  /** The text that a button copies, or a promise of it: a code block, or a reply in Markdown. */
  #textFor(button) {
    if (button.matches("[data-copy-code]")) {
      // Without the last line break, at which a terminal would run the code.
      return button.closest(".code").querySelector("pre").textContent.replace(/\n$/, "");
    }
    const reply = button.closest(".message");
    const shown = () => reply.querySelector(".prose, .stream").innerText;
    const source = reply.dataset.run ? this.#sources.get(reply.dataset.run) : shown();
    return typeof source === "string" ? source : source.then((text) => text ?? shown());
  }

  async #fetchSource(run) {
    const found = await fetchJSON(this.dataset.runUrl.replace(NO_ID, run));
    return found?.text ?? null;
  }

  /** Fetch the sources of replies that come into view, on pages that cannot wait for them at a click. */
  #watchReplies() {
    if (!needsTextAtHand()) return;
    for (const button of this.querySelectorAll("[data-copy]")) {
      this.#visible.observe(button.closest(".message"));
    }
  }

  #prefetch(entries) {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      this.#visible.unobserve(target);
      if (target.dataset.run) this.#sources.get(target.dataset.run);
    }
  }

  async #showEarlier(link) {
    const { page } = await fetchPage(link.href);
    if (page === null) {
      location.assign(link.href);
      return;
    }
    const items = [...page.querySelectorAll(".messages > li")];
    const next = page.querySelector("[data-earlier]");
    this.#scroll.keepPosition(() => {
      this.#list.prepend(...items);
      this.#prepare(this);
      if (next === null) link.parentElement.remove();
      else link.href = next.href;
    });
    items.at(-1)?.focus({ preventScroll: true });
    this.#fire("chat:announce", `${items.length} earlier messages loaded`);
  }

  #fire(name, detail = null) {
    this.dispatchEvent(new CustomEvent(name, { detail, bubbles: true }));
  }
}

/** The time at which the run of a freshly rendered reply was queued, by the clock of this machine. */
function queuedAt(reply) {
  const { queued, rendered } = reply.dataset; // by the server's clock, in seconds
  return Date.now() - 1_000 * (queued ? rendered - queued : 0);
}

/** Tells apart the messages of a page, and the states of a message. */
function versionOf(item) {
  return `${item.dataset.id} ${item.dataset.status}`;
}

/** Whether a shown message can stay in place of a fetched one of the same version. */
function canStay(shown, fetched) {
  if (shown.dataset.status === "pending") return false; // another writer will begin it anew
  const isLast = fetched.querySelector(".action-again") !== null; // of the last message of a page
  return !isLast || shown.querySelector(".action-again") !== null;
}

/** Whether the text of a link is its address. */
function isAddress(link) {
  const href = link.getAttribute("href") ?? "";
  return href.replace(/^\w+:(\/\/)?/, "").startsWith(link.textContent.trim().replace(/^\w+:(\/\/)?|…$/g, ""));
}

function isSelected(element) {
  const selection = document.getSelection();
  return !selection.isCollapsed && selection.containsNode(element, true);
}

/** Open the reasoning of a finished reply if the reader had it open. */
function keepOpen(reply, finished) {
  const reasoning = finished.querySelector(".reasoning");
  if (reasoning !== null) reasoning.open = reply?.querySelector(".reasoning")?.open ?? false;
}

function ending(event) {
  if (event.type === "run.done") return "Reply finished";
  if (event.type === "run.stopped") return "Reply stopped";
  return `Reply failed. ${event.message}`;
}
