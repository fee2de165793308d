import { gettext } from "../helpers/gettext.js";

/** A password field whose text can be shown. */
export class PasswordField extends HTMLElement {
  connectedCallback() {
    this.querySelector("button").addEventListener("click", (event) => this.#toggle(event.currentTarget));
    // Password managers and autofill go by the type: it must be password when the form is submitted.
    this.closest("form").addEventListener("submit", () => this.#show(false));
  }

  #toggle(button) {
    this.#show(this.querySelector("input").type === "password");
    button.focus();
  }

  #show(visible) {
    this.querySelector("input").type = visible ? "text" : "password";
    const button = this.querySelector("button");
    button.setAttribute("aria-pressed", String(visible));
    button.textContent = visible ? gettext("Hide") : gettext("Show");
  }
}
