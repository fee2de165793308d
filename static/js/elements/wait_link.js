import { countDown } from "../helpers/timing.js";

const LONGEST = 600; // seconds; a longer wait is named in the sentence above alone

/** A link that counts down the seconds before which it would be refused again. */
export class WaitLink extends HTMLElement {
  #countdown = null;

  connectedCallback() {
    const seconds = Number(this.dataset.seconds);
    const link = this.querySelector("a");
    const words = link.textContent;
    link.addEventListener("click", (event) => {
      if (link.ariaDisabled === "true") event.preventDefault();
    });
    if (!(seconds > 0 && seconds <= LONGEST)) return;
    this.#countdown = countDown(seconds, (left) => {
      link.ariaDisabled = String(left > 0);
      link.textContent = left > 0 ? this.dataset.waiting.replace("{}", left) : words;
    });
  }

  disconnectedCallback() {
    this.#countdown?.cancel();
  }
}
