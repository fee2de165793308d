import { fetchPage, sendForm } from "../helpers/dom.js";

const SPREAD = 5_000; // milliseconds over which the open pages of a site fetch a new announcement

/** The banners of announcements: fetched anew when they change, and closed without a load of the page. */
export class ChatAnnouncements extends HTMLElement {
  #app = null;
  #timer = null;
  #isStale = false;
  // Bars and targets of links keep clear of the banners.
  #resizes = new ResizeObserver(() => {
    document.documentElement.style.setProperty("--banners", `${this.offsetHeight}px`);
  });
  #changed = () => {
    this.#isStale = true;
    this.#fetchSoon();
  };
  #seen = () => this.#isStale && this.#fetchSoon();

  connectedCallback() {
    this.#app = this.closest("chat-app");
    this.#app?.addEventListener("announcements.changed", this.#changed);
    document.addEventListener("visibilitychange", this.#seen);
    this.addEventListener("submit", (event) => this.#close(event));
    this.#resizes.observe(this);
  }

  disconnectedCallback() {
    clearTimeout(this.#timer);
    this.#resizes.disconnect();
    this.#app?.removeEventListener("announcements.changed", this.#changed);
    document.removeEventListener("visibilitychange", this.#seen);
  }

  #fetchSoon() {
    clearTimeout(this.#timer);
    if (!document.hidden) this.#timer = setTimeout(() => this.#fetch(), Math.random() * SPREAD);
  }

  async #fetch() {
    const { page } = await fetchPage(this.dataset.address);
    const next = page?.querySelector("chat-announcements");
    if (!next || !this.isConnected) return;
    const known = new Set([...this.querySelectorAll("[data-announcement]")].map((one) => one.dataset.announcement));
    const added = [...next.querySelectorAll("[data-announcement]")].filter((one) => !known.has(one.dataset.announcement));
    this.#isStale = false;
    this.replaceChildren(...next.childNodes);
    this.hidden = this.querySelector("[data-announcement]") === null;
    for (const one of added) {
      const detail = one.querySelector(".announcement-text").textContent.trim();
      this.dispatchEvent(new CustomEvent("chat:announce", { detail, bubbles: true }));
    }
  }

  async #close(event) {
    event.preventDefault();
    const form = event.target;
    const { isDone } = await sendForm(form.action, new FormData(form));
    if (!isDone) {
      form.submit(); // the page that follows shows what is wrong
      return;
    }
    form.closest("[data-announcement]").remove();
    this.hidden = this.querySelector("[data-announcement]") === null;
  }
}
