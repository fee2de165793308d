import { fetchPage } from "../helpers/dom.js";
import { locale } from "../helpers/gettext.js";
import { ReadingAloud } from "../models/reading_aloud.js";
import { speakable } from "../helpers/prose.js";

/**
 * The menu of a reply: copies, its address, actions that a narrow screen has no room for, reading aloud, and details. Fires "chat:copy-as" ({message, kind})
 * at the transcript.
 */
export class ChatMessageMenu extends HTMLElement {
  #message = null;
  #button = null;
  #voice = new ReadingAloud();
  #listening = new AbortController();

  connectedCallback() {
    const { signal } = this.#listening;
    this.closest("chat-app").addEventListener("submit", (event) => this.#submitted(event), { signal });
    this.addEventListener("click", (event) => this.#clicked(event));
    this.addEventListener("keydown", (event) => this.#key(event));
    this.addEventListener("toggle", ({ newState }) => this.#toggled(newState === "open"));
    globalThis.speechSynthesis?.getVoices(); // some browsers load them at the first call
  }

  disconnectedCallback() {
    this.#listening.abort();
    this.#voice.stop();
  }

  #submitted(event) {
    const button = event.submitter;
    if (event.target.id !== "details" || button === null) return;
    event.preventDefault();
    this.#button = button;
    this.#message = button.closest(".message");
    const aloud = this.querySelector("[data-read-aloud]");
    aloud.hidden = this.#voice.voiceFor(this.#text) === undefined;
    const label = aloud.querySelector("[data-label]");
    label.textContent = this.#voice.isReading(this.#message.id) ? label.dataset.reading : label.dataset.label;
    for (const item of this.querySelectorAll("[data-for]")) {
      const shown = this.#message.querySelector(`.actions > ${item.dataset.for}`);
      const isUseless = shown?.matches("[data-single-model] [form=models]") ?? true;
      item.hidden = isUseless || shown.checkVisibility();
    }
    this.querySelector("[data-menu-details]").replaceChildren();
    this.showPopover();
    this.#showDetails();
  }

  get #text() {
    const prose = this.#message.querySelector(".prose, .stream");
    return prose === null ? "" : speakable(prose);
  }

  async #showDetails() {
    const message = this.#message;
    const url = `${this.dataset.detailsUrl}?message=${message.dataset.id}`;
    const { page } = await fetchPage(url);
    const details = page?.querySelector("[data-details]");
    if (message !== this.#message || !this.matches(":popover-open")) return;
    if (!details) {
      location.assign(url); // the browser shows the page, or why there is none
      return;
    }
    for (const time of details.querySelectorAll("time")) {
      time.textContent = new Date(time.dateTime).toLocaleString(locale, { dateStyle: "medium", timeStyle: "short" });
    }
    this.querySelector("[data-menu-details]").replaceChildren(details);
    this.#place();
  }

  #clicked(event) {
    const item = event.target.closest(".menu-item");
    if (item === null) return;
    this.hidePopover();
    this.#button.focus({ preventScroll: true });
    if (item.matches("[data-read-aloud]")) {
      if (this.#voice.isReading(this.#message.id)) this.#voice.stop();
      else this.#voice.start(this.#message.id, this.#text);
      return;
    }
    if (item.dataset.for) {
      this.#message.querySelector(`.actions > ${item.dataset.for}`).click();
      return;
    }
    const detail = { message: this.#message, kind: item.dataset.copyAs };
    this.#message.closest("chat-transcript").dispatchEvent(new CustomEvent("chat:copy-as", { detail }));
  }

  #toggled(isOpen) {
    this.#button?.setAttribute("aria-expanded", String(isOpen));
    if (!isOpen) return;
    this.#place();
    this.querySelector(".menu-item:not([hidden])").focus();
  }

  #place() {
    const { left, right, bottom, top } = this.#button.getBoundingClientRect();
    const { width, height } = this.getBoundingClientRect();
    const x = document.dir === "rtl" ? right - width : left;
    const y = bottom + height < innerHeight ? bottom : top - height;
    this.style.left = `${Math.max(8, Math.min(x, innerWidth - width - 8))}px`;
    this.style.top = `${Math.max(8, Math.min(y, innerHeight - height - 8))}px`;
  }

  #key(event) {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step === undefined) return;
    event.preventDefault();
    const items = [...this.querySelectorAll(".menu-item")].filter((item) => !item.hidden);
    items.at((items.indexOf(document.activeElement) + step) % items.length).focus();
  }
}
