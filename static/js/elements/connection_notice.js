import { countDown } from "../helpers/timing.js";

/** The notice of a lost connection; `chat:announce` has screen readers read it. */
export class ConnectionNotice extends HTMLElement {
  #timer = null;
  #countdown = null; // of the next attempt to connect

  /** Show after `delay` milliseconds that the connection is lost, unless `hide` is called before. */
  showSoon(delay) {
    this.#timer ??= setTimeout(() => {
      if (!document.hidden) this.show(navigator.onLine ? this.dataset.lost : this.dataset.offline);
    }, delay);
  }

  show(sentence) {
    this.#text = sentence;
    this.hidden = false;
    this.#announce(sentence);
  }

  /** Show why the server refuses the connection, and the seconds until the next attempt. */
  showRefusal(message, seconds) {
    this.#countdown?.cancel();
    this.show(message);
    this.#countdown = countDown(seconds, (left) => {
      const next = left > 0 ? this.dataset.retryIn.replace("%s", left) : this.dataset.retryNow;
      this.#text = `${message} ${next}`;
    });
  }

  hide() {
    clearTimeout(this.#timer);
    this.#timer = null;
    this.#countdown?.cancel();
    if (!this.hidden) this.#announce(this.dataset.reconnected);
    this.hidden = true;
  }

  // --- Internal

  set #text(sentence) {
    this.querySelector("[data-connection-text]").textContent = sentence;
  }

  #announce(sentence) {
    this.dispatchEvent(new CustomEvent("chat:announce", { detail: sentence, bubbles: true }));
  }
}
