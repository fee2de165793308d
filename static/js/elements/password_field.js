/** A password that one can look at. */
export class PasswordField extends HTMLElement {
  connectedCallback() {
    this.querySelector("button").addEventListener("click", (event) => this.#toggle(event.currentTarget));
    // What is remembered or autofilled by type must find a password when the form goes out.
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
    button.textContent = visible ? "Hide" : "Show";
  }
}
