import { showAppearance } from "../helpers/appearance.js";
import { sendForm } from "../helpers/dom.js";

/** The settings of a user: each choice is shown at once and stored without a button. */
export class ChatSettings extends HTMLElement {
  #sending = Promise.resolve();

  connectedCallback() {
    this.toggleAttribute("data-live", true);
    this.addEventListener("change", ({ target }) => this.#changed(target.form));
  }

  #changed(form) {
    if (form.matches("[data-whole]")) return; // its button loads the page anew
    const chosen = new FormData(form);
    if (chosen.has("theme")) showAppearance(Object.fromEntries(chosen));
    // One after the other, so that the last choice is the one that is stored.
    this.#sending = this.#sending.then(async () => {
      const { message } = await sendForm(form.action, chosen);
      form.querySelector("[data-saved]").textContent = message;
    });
  }
}
