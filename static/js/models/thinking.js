// The line that opens the model's reasoning: it counts the seconds while the model thinks.

import { gettext } from "../helpers/gettext.js";

export class Thinking {
  #details;
  #since;
  #timer = null;
  #isOver = false;

  /** `since` is the time at which the model began, if that was before this page was rendered; or null. */
  constructor(details, since) {
    this.#details = details;
    this.#since = since;
  }

  get isActive() {
    return this.#timer !== null;
  }

  /** Show what the reply has: `hasThoughts` of the present attempt, and `hasText` after them. */
  update(hasThoughts, hasText) {
    if (hasThoughts && !hasText && this.#timer === null) this.#begin();
    else if ((hasText || !hasThoughts) && this.#timer !== null) this.#end(hasText);
  }

  stop() {
    clearInterval(this.#timer);
    this.#timer = null;
    this.#details.removeAttribute("data-thinking");
  }

  #begin() {
    this.#since = this.#isOver ? Date.now() : (this.#since ?? Date.now());
    this.#details.toggleAttribute("data-thinking", true);
    const show = () => this.#show(gettext("Thinking… {seconds} s", { seconds: this.#seconds }));
    this.#timer = setInterval(show, 1_000);
    show();
  }

  #end(hasText) {
    this.stop();
    this.#isOver = true;
    if (hasText) this.#show(gettext("Thought for {seconds} s", { seconds: Math.max(1, this.#seconds) }));
  }

  get #seconds() {
    return Math.round((Date.now() - this.#since) / 1_000);
  }

  #show(text) {
    this.#details.querySelector("summary").lastChild.textContent = ` ${text}`;
  }
}
