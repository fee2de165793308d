// Earlier messages of a long chat: they come before the first one as the reader nears it.

import { fetchPage } from "../helpers/dom.js";

const AHEAD = "2000px 0px 0px"; // the distance of the first message from the window at which more are fetched

export class History {
  #transcript;
  #insert;
  #near = new IntersectionObserver((entries) => this.#reached(entries), { rootMargin: AHEAD });
  #isLoading = false;

  /**
   * `insert(list, change)` puts a list of messages before the others, without moving those, and calls `change`
   * at the same time.
   */
  constructor(transcript, insert) {
    this.#transcript = transcript;
    this.#insert = insert;
  }

  get #link() {
    return this.#transcript.querySelector("[data-earlier]");
  }

  /** Fetch earlier messages when the reader comes near to the first one. */
  watch() {
    this.#near.disconnect();
    if (this.#link !== null) this.#near.observe(this.#link);
  }

  stop() {
    this.#near.disconnect();
  }

  /** Fetch earlier messages; without an answer the browser opens their page if the reader has asked for it. */
  async load({ isAsked }) {
    const link = this.#link;
    if (this.#isLoading || link === null) return;
    this.#isLoading = true;
    link.setAttribute("aria-busy", "true");
    const { page } = await fetchPage(link.href);
    this.#isLoading = false;
    link.removeAttribute("aria-busy");
    if (!link.isConnected) return;
    if (page === null) {
      this.#near.disconnect(); // until the reader asks
      if (isAsked) location.assign(link.href);
      return;
    }
    // A list of its own, which the browser skips as a whole while it is outside the window.
    const list = page.querySelector(".messages");
    this.#insert(list, () => this.replaceWith(page));
    if (isAsked) list.lastElementChild?.focus({ preventScroll: true });
  }

  /** Show the link of a page, whose first message is the first one now. */
  replaceWith(page) {
    const fresh = page.querySelector("[data-earlier]");
    const link = this.#link;
    if (fresh === null) link?.parentElement.remove();
    else if (link === null) this.#transcript.prepend(fresh.parentElement);
    else link.href = fresh.href;
    this.watch();
  }

  #reached(entries) {
    if (entries.some(({ isIntersecting }) => isIntersecting)) this.load({ isAsked: false });
  }
}
