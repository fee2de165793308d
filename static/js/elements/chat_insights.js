import { fetchPage } from "../helpers/dom.js";

const PAUSE = 15_000; // milliseconds between two looks at a job, in case an event was lost

/** The cards of a job of insights: each event is followed by a look at the page, which has the new cards. */
export class ChatInsights extends HTMLElement {
  #timer = null;
  #app = null;
  #isLooking = false;
  #isStale = false;
  #received = ({ detail }) => {
    if (detail.job === this.dataset.job) this.#look();
  };

  connectedCallback() {
    this.#app = this.closest("chat-app");
    this.#app?.addEventListener("insight.updated", this.#received);
    if (this.hasAttribute("data-active")) this.#timer = setTimeout(() => this.#look(), PAUSE);
  }

  disconnectedCallback() {
    clearTimeout(this.#timer);
    this.#app?.removeEventListener("insight.updated", this.#received);
  }

  async #look() {
    if (this.#isLooking) {
      this.#isStale = true;
      return;
    }
    this.#isLooking = true;
    clearTimeout(this.#timer);
    do {
      this.#isStale = false;
      const { page } = await fetchPage(location.pathname);
      if (!this.isConnected) return;
      this.#show(page?.querySelector("chat-insights"));
    } while (this.#isStale);
    this.#isLooking = false;
    if (this.hasAttribute("data-active")) this.#timer = setTimeout(() => this.#look(), PAUSE);
  }

  /** Replace the parts that have changed, so that the focus and the place of reading stay in the others. */
  #show(fresh) {
    if (!fresh) return;
    this.toggleAttribute("data-active", fresh.hasAttribute("data-active"));
    for (const part of fresh.querySelectorAll("[data-part]")) {
      const mine = this.querySelector(`[data-part="${part.dataset.part}"]`);
      if (mine && mine.dataset.state !== part.dataset.state) mine.replaceWith(part);
    }
  }
}
