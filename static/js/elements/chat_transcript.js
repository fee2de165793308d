import { copy, needsTextAtHand } from "../helpers/clipboard.js";
import { fetchJSON, fromHTML, fromTemplate, isSelected, saveFile } from "../helpers/dom.js";
import { foldLong, toggleFold } from "../helpers/folding.js";
import { fileName, toCSV, toMarkdown } from "../helpers/formats.js";
import { gettext, ngettext } from "../helpers/gettext.js";
import { NO_ID } from "../helpers/ids.js";
import { measureAgain, skipOffscreen } from "../helpers/offscreen.js";
import { followNote, plainCopy, prepareProse, rowsOf, textOfCode, toggleWrap } from "../helpers/prose.js";
import { showImage, togglePreview } from "../helpers/previews.js";
import { movementOf, placeBelow } from "../helpers/reading_place.js";
import { listenForScrolling } from "../helpers/scroll_intent.js";
import { storageOf } from "../helpers/storage.js";
import { History } from "../models/history.js";
import { formatThoughts } from "../helpers/thoughts.js";
import { KnownFiles } from "../models/known_files.js";
import { LiveReply } from "../models/live_reply.js";
import { ReplySources } from "../models/reply_sources.js";
import { ScrollManager } from "../models/scroll_manager.js";

const COPIED_FOR = 2_000; // milliseconds
const FINISHED_THOUGHTS = ".message:not([data-status=pending]) > .reasoning[open]";
const FIELDS = "input, textarea, select, video, audio, iframe, [contenteditable]";

/**
 * The messages of the page. Follows the active runs of the chat and shows their replies as they stream in.
 *
 * Fires "chat:run" (detail: the id of a run that is followed, or null), "chat:resume" ({run,
 * after}), "chat:announce" (a sentence for the live region), "chat:error" (a sentence for the
 * composer), "chat:stale" (the page must be fetched again) and "chat:scrolled".
 */
export class ChatTranscript extends HTMLElement {
  #scroll = new ScrollManager(document.scrollingElement);
  #live = new Map(); // the replies that are being generated, by the ids of their runs
  #replaced = null; // the messages that a new reply replaced: {run, after, items}
  #chosen = null; // the branch that the reader has asked for: {message, button}
  #sources = new ReplySources((run) => this.#fetchSource(run));
  #visible = new IntersectionObserver((entries) => this.#prefetch(entries));
  #history = new History(this, (list, change) => this.#prepend(list, change));
  #width = 0; // for which the messages were laid out
  #listening = new AbortController();

  connectedCallback() {
    history.scrollRestoration = "manual";
    const { signal } = this.#listening;
    this.addEventListener("click", (event) => this.#clicked(event));
    this.addEventListener("keydown", (event) => this.#key(event));
    this.addEventListener("chat:copy-as", ({ detail }) => this.#copyAs(detail));
    this.addEventListener("toggle", ({ target }) => this.#toggled(target), { capture: true });
    addEventListener("scroll", () => this.#scrolled(), { passive: true, signal });
    const selected = () => {
      if (isSelected(this)) this.#scroll.stop(); // text must not move away from under the pointer
    };
    document.addEventListener("selectionchange", selected, { signal });
    listenForScrolling({ up: () => this.#scroll.stop(), down: () => this.#scroll.down() }, signal);
    this.#width = innerWidth;
    this.#prepare(this.#items);
    const edited = this.querySelector("[data-edited]");
    if (edited !== null) edited.scrollIntoView({ block: "center" });
    else if (this.#items.length === 0) this.#scroll.stop(); // a new chat is read from its beginning
    else if (!this.isPast && !location.hash.startsWith("#m-")) this.#scroll.toEnd();
    this.#history.watch();
  }

  disconnectedCallback() {
    this.#listening.abort();
    this.#visible.disconnect();
    this.#history.stop();
    for (const live of this.#live.values()) live.stop();
    this.#live.clear();
  }

  get conversation() {
    return this.dataset.conversation;
  }

  /** The place of a reader: the first visible message and its distance from the top; null at the end. */
  get place() {
    if (this.#scroll.isAtEnd) return null;
    const bar = document.querySelector(".topbar").offsetHeight;
    const item = this.#items.find((shown) => shown.getBoundingClientRect().bottom > bar);
    return item === undefined ? null : { id: item.id, top: item.getBoundingClientRect().top };
  }

  /** Scroll to a place that `place` returned, unless its message is not on the page. */
  set place(place) {
    const item = place === null ? null : document.getElementById(place.id);
    if (item === null) return;
    this.#scroll.stop();
    this.#scroll.shift(item.getBoundingClientRect().top - place.top);
  }

  /** Whether the page shows an earlier part of the conversation, where nothing new arrives. */
  get isPast() {
    return this.hasAttribute("data-past");
  }

  get isNearEnd() {
    return this.#items.length === 0 || this.#scroll.isNearEnd;
  }

  /** The runs that are followed: {run, after} of each. */
  get cursors() {
    return [...this.#live.values()].map((live) => live.cursor);
  }

  /** The position in the events of a run that is followed: {run, after}, or undefined. */
  cursor(run) {
    return this.#live.get(run)?.cursor;
  }

  get lastMessage() {
    return this.#items.at(-1)?.dataset.id ?? null;
  }

  toEnd() {
    this.#scroll.toEnd();
  }

  /** The window or the composer has another height: keep the end in view for a reader who follows. */
  resized() {
    if (innerWidth !== this.#width) measureAgain(this.querySelectorAll("[data-laid-out]"));
    this.#width = innerWidth;
    this.#scroll.resized();
  }

  /** Follow the runs that the page was rendered with. */
  followRendered() {
    for (const run of runsOf(this)) this.#follow(run);
  }

  /** Show the user's message before the server has it. */
  showSending({ client_id: clientId, text, attachments = [] }) {
    if (this.#sending(clientId)) return;
    const item = fromTemplate(document.getElementById("own-message"));
    item.dataset.pending = clientId;
    item.querySelector(".own-text").textContent = text;
    item.querySelector(".own-text").hidden = text.trim() === "";
    foldLong(item.querySelector(".own-text"));
    if (attachments.length > 0) item.querySelector(".own-state").before(this.#sentFiles(attachments));
    this.#scroll.follow(() => this.#list.append(item), { always: true });
  }

  /** The names of files that are being sent; the pictures come with the message. */
  #sentFiles(ids) {
    const list = document.createElement("ul");
    list.className = "attached";
    for (const { name } of new KnownFiles(storageOf(this.closest("chat-app").dataset.user)).find(ids)) {
      const item = fromTemplate(document.getElementById("sent-file"));
      item.querySelector(".attached-name").textContent = name;
      list.append(item);
    }
    return list;
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
    const live = this.#live.get(event.run);
    if (live !== undefined || (shown !== null && shown.dataset.status !== "pending")) {
      // The page was fetched anew after the message was stored and before this event came.
      this.unsend(event.client_id);
      if (live !== undefined && !live.hasStarted) live.showWait(event, 1);
      return;
    }
    this.#scroll.follow(
      () => {
        this.unsend(event.client_id);
        if (shown === null) this.#place(event);
      },
      { always: own },
    );
    if (this.#find(event.reply.id) === null) return;
    this.#follow(event.run).showWait(event, 1);
  }

  /** Show an event of a run that is followed; events of other runs do nothing. */
  receive(event) {
    const live = this.#live.get(event.run);
    if (live?.receive(event)) this.#end(live, event);
  }

  /** Follow a run no longer: the server does not find it. */
  abandon(run) {
    this.#unfollow(run);
  }

  /** Replace the messages by those of a fetched page, if they differ. */
  sync(page) {
    const fresh = page.querySelector("chat-transcript");
    if (fresh === null || this.isPast) return;
    const runs = runsOf(fresh);
    const items = [...fresh.querySelectorAll(".messages > li")];
    const mine = this.#items;
    // The messages before one never change: earlier ones stay that the fetched page does not have.
    const kept = mine.slice(0, Math.max(0, mine.findIndex(({ id }) => id === items[0]?.id)));
    const isSameRuns = runs.length === this.#live.size && runs.every((run) => this.#live.has(run));
    if (isSameRuns && isSame(mine, [...kept, ...items])) return;
    const sending = mine.filter((item) => item.dataset.pending);
    for (const run of [...this.#live.keys()]) this.#unfollow(run);
    this.#replaced = null;
    this.#scroll.follow(() => {
      this.#arrange(kept, [...items, ...sending]);
      if (kept.length === 0) this.#history.replaceWith(fresh);
    });
    this.#prepare(this.#items.slice(kept.length));
    for (const run of runs) this.#fire("chat:resume", this.#follow(run).cursor);
  }

  // --- Branches

  /** Whether the reader has asked for the branch of a message. */
  isChoosing(message) {
    return this.#chosen?.message === message;
  }

  /** The reader has pressed a button for the branch of a message. */
  choose(button) {
    this.#chosen = { message: button.value, button };
  }

  /** The branch that the reader asked for cannot be shown. */
  refuseBranch() {
    this.#chosen = null;
  }

  /**
   * Show the messages of a fetched page with the branch that the reader asked for. The buttons of the
   * message where it branches stay where they were on the screen, and keep the focus.
   */
  showBranch(page) {
    const { message, button } = this.#chosen;
    this.#chosen = null;
    const group = button.closest(".branches");
    const isPrevious = group?.querySelector("button") === button;
    const top = (group ?? button).getBoundingClientRect().top;
    const hadFocus = (group ?? button).contains(document.activeElement);
    const wasInMessage = button.closest(".message")?.contains(document.activeElement) ?? false;
    this.#scroll.stop();
    this.sync(page);
    const shown = branchesOf(this.#find(message));
    if (shown === null) return;
    this.#scroll.shift(shown.getBoundingClientRect().top - top);
    const buttons = [...shown.querySelectorAll("button")];
    if (!isPrevious) buttons.reverse();
    if (hadFocus) buttons.find((one) => !one.disabled)?.focus({ preventScroll: true });
    else if (wasInMessage) this.#find(message).focus({ preventScroll: true });
    const place = shown.querySelector(".branch-place").textContent;
    this.#fire("chat:announce", `${shown.getAttribute("aria-label")}: ${place}`);
    this.#fire("chat:scrolled");
  }

  // --- Internal: placing messages

  /** The list of the newest messages; earlier ones are in lists of their own, as they were fetched. */
  get #list() {
    return this.querySelector(":scope > .messages:last-of-type");
  }

  get #items() {
    return [...this.querySelectorAll(":scope > .messages > li")];
  }

  #find(id) {
    return document.getElementById(`m-${id}`);
  }

  #sending(clientId) {
    return this.#list.querySelector(`[data-pending="${clientId}"]`);
  }

  /**
   * Show these messages after the kept ones. Finished ones that are shown already stay, with a selection in
   * their text.
   */
  #arrange(kept, items) {
    const shown = new Map(this.#items.map((item) => [versionOf(item), item]));
    const list = this.#list;
    const wanted = items.map((item) => {
      if (item.parentNode === list) return item; // being sent
      const same = shown.get(versionOf(item));
      return same !== undefined && canStay(same) ? same : item;
    });
    const staying = new Set([...kept, ...wanted]);
    for (const item of this.#items) if (!staying.has(item)) item.remove();
    const first = kept.filter((item) => item.parentNode === list).length;
    wanted.forEach((item, index) => {
      const here = list.children[first + index] ?? null;
      if (here !== item) list.insertBefore(item, here);
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
    if (sent !== null && event.compared && replaced.every((item) => item.dataset.compared)) {
      this.#list.append(fromHTML(event.reply.html)); // beside the other compared replies
      return;
    }
    const hadFocus = replaced.some((item) => item.contains(document.activeElement));
    for (const item of replaced) item.remove();
    this.#replaced = sent === null ? null : { run: event.run, after: sent, items: replaced };
    if (sent === null && event.sent) {
      const own = fromHTML(event.sent.html);
      const text = own.querySelector(".own-text"); // null beside files alone
      if (text !== null) foldLong(text);
      this.#list.append(own);
    }
    const reply = fromHTML(event.reply.html);
    this.#list.append(reply);
    if (hadFocus) reply.focus({ preventScroll: true });
  }

  // --- Internal: following a run

  #follow(run) {
    const parts = { scroll: this.#scroll, fire: (name, detail) => this.#fire(name, detail) };
    const reply = this.querySelector(`[data-run="${run}"][data-status="pending"]`);
    const live = new LiveReply(run, reply, parts);
    this.#live.set(run, live);
    this.#followed();
    return live;
  }

  #unfollow(run) {
    this.#live.get(run)?.stop();
    this.#live.delete(run);
    this.#followed();
  }

  #followed() {
    // It shows the buttons of all replies, which may take a second line.
    this.#scroll.follow(() => this.toggleAttribute("data-busy", this.#live.size > 0));
    this.#fire("chat:run", [...this.#live.keys()].at(-1) ?? null);
  }

  #end(live, event) {
    const reply = this.#find(event.reply);
    const replaced = this.#replaced?.run === event.run ? this.#replaced : null;
    if (replaced !== null) this.#replaced = null;
    const isShown = event.type !== "run.failed" && event.text !== "";
    const isElsewhere = live.element === null && reply === null; // another branch is shown
    const isRestored = !isShown && replaced !== null && replaced.items.length > 0;
    if (isRestored) {
      this.#scroll.follow(() => {
        reply?.remove();
        replaced.after.after(...replaced.items);
      });
    } else if (!isElsewhere) {
      this.#scroll.follow(() => this.#finish(live, reply, event));
    }
    this.#fire("chat:announce", ending(event));
    this.#unfollow(event.run);
    // The page has the error below the previous reply, and one more sibling of it.
    if (isRestored || isElsewhere) this.#fire("chat:stale");
    this.#fire("chat:scrolled");
  }

  #finish(live, reply, event) {
    const isShort = event.text === undefined;
    if (isShort && (reply === null || live.element !== reply)) {
      this.#fire("chat:stale"); // the page was changed meanwhile
      return;
    }
    this.#sources.put(event.run, event.text ?? live.text);
    const finished = fromHTML(event.html);
    const compared = reply?.dataset.compared;
    if (compared) finished.dataset.compared = compared;
    if (isShort) {
      live.finish(finished);
      this.#prepare([reply]);
      return;
    }
    if (reply !== null && isSelected(reply)) {
      live.complete(event.text);
      this.#finishSelected(reply, finished);
      return;
    }
    keepOpen(reply, finished);
    const hadFocus = reply?.contains(document.activeElement) ?? false;
    if (reply === null) this.#list.append(finished);
    else this.#keepLine(reply, () => reply.replaceWith(finished), finished);
    this.#prepare([finished]);
    if (hadFocus) finished.focus({ preventScroll: true });
  }

  /** Finish a reply in which text is selected: that text is replaced when the selection has ended. */
  #finishSelected(reply, finished) {
    for (const { name, value } of finished.attributes) reply.setAttribute(name, value);
    for (const part of reply.querySelectorAll(".progress, .notice")) part.remove();
    reply.append(...finished.querySelectorAll(":scope > :is(.notice, .actions, .compare-foot)"));
    const replace = () => {
      if (isSelected(reply)) return;
      document.removeEventListener("selectionchange", replace);
      keepOpen(reply, finished);
      const swap = () => {
        const streamed = reply.querySelectorAll(".stream, .reasoning, .reply-note");
        reply.querySelector(".stream").before(...finished.querySelectorAll(":scope > :is(.reasoning, .prose)"));
        for (const part of streamed) part.remove();
        this.#prepare([reply]);
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
  #toggled(details) {
    if (details.matches(FINISHED_THOUGHTS)) formatThoughts(details.querySelector(".reasoning-text"));
    if (this.#scroll.isAtEnd) this.#scroll.toEnd();
    this.#fire("chat:scrolled");
  }

  // --- Internal: actions on a message

  /** Add the parts that need the script to messages rendered by the server. */
  #prepare(items) {
    for (const item of items) {
      prepareProse(item.querySelectorAll(":scope > .prose > *"));
      for (const details of item.querySelectorAll(FINISHED_THOUGHTS)) formatThoughts(details.querySelector(".reasoning-text"));
      const text = item.querySelector(":scope > .own-text");
      if (text !== null) foldLong(text);
    }
    this.#watchReplies(items);
    skipOffscreen(items);
  }

  /** Put a list of earlier messages before the others, without moving those. */
  #prepend(list, change) {
    const items = [...list.children];
    this.#scroll.keepPosition(() => {
      this.querySelector(":scope > .messages").before(list);
      this.#prepare(items);
      change();
    });
    skipOffscreen([list]);
    this.#fire("chat:announce", ngettext("{count} earlier message loaded", "{count} earlier messages loaded", items.length));
  }

  #clicked(event) {
    if (event.target.closest("details:not([open]) > summary")) this.#scroll.stop(); // `#toggled` follows again
    const button = event.target.closest("[data-copy], [data-copy-own], [data-copy-code], [data-copy-csv], [data-copy-markdown]");
    if (button !== null) this.#copy(button);
    const fold = event.target.closest("[data-fold]");
    if (fold !== null) toggleFold(fold);
    const wrap = event.target.closest("[data-wrap-code]");
    if (wrap !== null) toggleWrap(wrap);
    const preview = event.target.closest("[data-preview]");
    if (preview !== null) togglePreview(preview, this.dataset.previewUrl, textOfCode(preview));
    const image = event.target.closest("[data-show-image]");
    if (image !== null) showImage(image, this.dataset.previewUrl);
    const note = event.target.closest("[data-note]");
    if (note !== null) {
      this.#scroll.stop();
      followNote(note);
    }
    const download = event.target.closest("[data-download-code]");
    if (download !== null) this.#download(download);
    const earlier = event.target.closest("[data-earlier]");
    if (earlier !== null && !event.ctrlKey && !event.metaKey && !event.shiftKey) {
      event.preventDefault();
      this.#history.load({ isAsked: true });
    }
  }

  /** Arrow keys walk between the siblings of the message that has the focus, unless they move something in it. */
  #key(event) {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (step === undefined || event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
    const group = branchesOf(event.target.closest(".message"));
    if (group === null || event.target.matches(FIELDS) || isScrollable(event.target)) return;
    event.preventDefault();
    const [previous, next] = group.querySelectorAll("button");
    const isReversed = getComputedStyle(group).direction === "rtl";
    (step < 0 === isReversed ? next : previous).click();
  }

  async #copy(button) {
    const html = button.matches("[data-copy]") ? htmlOf(button.closest(".message")) : null;
    if (!(await this.#copyText(this.#textFor(button), html))) return;
    const use = button.querySelector("use");
    use.setAttribute("href", "#i-check");
    setTimeout(() => use.setAttribute("href", "#i-copy"), COPIED_FOR);
  }

  /** Copy a reply as the menu asks: its Markdown, its formatted text, or its address. */
  #copyAs({ message, kind }) {
    if (kind === "markdown") this.#copyText(this.#sourceOf(message));
    else if (kind === "rich") this.#copyText(message.querySelector(".prose, .stream")?.innerText ?? "", htmlOf(message));
    else this.#copyText(`${location.origin}/c/${this.conversation}/?message=${message.dataset.id}#${message.id}`);
  }

  /** Whether a text, or the text that a promise resolves to, was copied. */
  async #copyText(text, html = null) {
    try {
      await copy(text, html);
    } catch (error) {
      console.warn("Copying failed", error);
      this.#fire("chat:error", gettext("The browser blocked copying. Select the text and copy it by hand."));
      return false;
    }
    this.#fire("chat:announce", gettext("Copied"));
    return true;
  }

  /** The text that a button copies, or a promise of it: a code block, or a reply in Markdown. */
  #textFor(button) {
    if (button.matches("[data-copy-code]")) return textOfCode(button);
    if (button.matches("[data-copy-own]")) return button.closest(".own").querySelector(".own-text").textContent;
    if (button.matches("[data-copy-csv]")) return toCSV(rowsOf(button));
    if (button.matches("[data-copy-markdown]")) return toMarkdown(rowsOf(button));
    return this.#sourceOf(button.closest(".message"));
  }

  /** The Markdown of a reply, or a promise of it. */
  #sourceOf(reply) {
    const shown = () => reply.querySelector(".prose, .stream").innerText;
    const source = reply.dataset.run ? this.#sources.get(reply.dataset.run) : shown();
    return typeof source === "string" ? source : source.then((text) => text ?? shown());
  }

  #download(button) {
    const caption = button.closest(".code").querySelector("figcaption")?.textContent ?? "";
    saveFile(fileName(caption), `${textOfCode(button)}\n`);
  }

  async #fetchSource(run) {
    const found = await fetchJSON(this.dataset.runUrl.replace(NO_ID, run));
    return found?.text ?? null;
  }

  /** Fetch the sources of replies that come into view, on pages that cannot wait for them at a click. */
  #watchReplies(items) {
    if (!needsTextAtHand()) return;
    for (const item of items) {
      if (item.querySelector("[data-copy]") !== null) this.#visible.observe(item);
    }
  }

  #prefetch(entries) {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      this.#visible.unobserve(target);
      if (target.dataset.run) this.#sources.get(target.dataset.run);
    }
  }

  #fire(name, detail = null) {
    this.dispatchEvent(new CustomEvent(name, { detail, bubbles: true }));
  }
}

/** The ids of the active runs of a transcript, as the server rendered it. */
function runsOf(transcript) {
  return transcript.dataset.runs?.split(" ") ?? [];
}

/** The buttons that lead to the siblings of a message; null without siblings. */
function branchesOf(message) {
  return message?.querySelector(":scope > .branches, :scope > .actions > .branches") ?? null;
}

/** Whether the arrow keys scroll an element sideways, such as wide code. */
function isScrollable(element) {
  return element.scrollWidth > element.clientWidth && /auto|scroll/.test(getComputedStyle(element).overflowX);
}

/** The HTML of a reply for other programs. */
function htmlOf(message) {
  const prose = message.querySelector(".prose, .stream");
  return prose === null ? null : plainCopy(prose).innerHTML;
}

function isSame(shown, wanted) {
  const mine = shown.filter((item) => !item.dataset.pending);
  return mine.map(versionOf).join() === wanted.map(versionOf).join();
}

/** Tells apart the messages of a page, and the states of a message. */
function versionOf(item) {
  const { id, status, place = "", failed = "", compared = "" } = item.dataset;
  return `${id} ${status} ${place} ${failed} ${compared}`;
}

/** Whether a shown message can stay in place of a fetched one of the same version. */
function canStay(shown) {
  return shown.dataset.status !== "pending"; // another writer will begin it anew
}

/** Open the reasoning of a finished reply if the reader had it open. */
function keepOpen(reply, finished) {
  const reasoning = finished.querySelector(".reasoning");
  if (reasoning !== null) reasoning.open = reply?.querySelector(".reasoning")?.open ?? false;
}

function ending(event) {
  if (event.type === "run.done") return gettext("Reply finished");
  if (event.type === "run.stopped") return gettext("Reply stopped");
  return gettext("Reply failed. {reason}", { reason: event.message });
}
