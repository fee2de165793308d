import { sendForm } from "../helpers/dom.js";

/**
 * The dialog with the instructions for the chat of the page. Without it the browser opens their page.
 *
 * Fires "chat:notice" with the answer to a saved form.
 */
export class ChatInstructions extends HTMLElement {
  #listening = new AbortController();

  connectedCallback() {
    const { signal } = this.#listening;
    this.#form.addEventListener("submit", (event) => this.#save(event));
    this.querySelector("[data-close]").addEventListener("click", (event) => {
      event.preventDefault();
      event.stopPropagation(); // it leads to the page that is shown
      this.#close();
    });
    this.closest("chat-app").addEventListener("instructions.changed", ({ detail }) => this.#changed(detail), { signal });
    this.parentElement.querySelector("[data-instructions]").addEventListener("click", (event) => {
      if (event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return;
      event.preventDefault();
      this.#open();
    });
  }

  disconnectedCallback() {
    this.#listening.abort();
  }

  get #dialog() {
    return this.querySelector("dialog");
  }

  get #form() {
    return this.querySelector(".instructions-form");
  }

  get #field() {
    return this.#form.elements.system_prompt;
  }

  #open() {
    this.#showError("");
    this.parentElement.querySelector("[data-chat-menu]").open = false;
    this.#dialog.showModal();
    this.#field.focus();
  }

  #close() {
    this.#dialog.close();
  }

  async #save(event) {
    event.preventDefault();
    const text = this.#field.value;
    const { isDone, message } = await sendForm(this.#form.action, new FormData(this.#form));
    if (!isDone) {
      this.#showError(message);
      return;
    }
    this.#stored(text.trim());
    this.#close();
    this.dispatchEvent(new CustomEvent("chat:notice", { detail: message, bubbles: true }));
  }

  /** Another tab has stored instructions: a text that is being changed here stays. */
  #changed({ conversation, system_prompt: text }) {
    if (!this.#form.action.includes(conversation)) return;
    const isTyped = this.#field.value !== this.#field.defaultValue;
    const typed = this.#field.value;
    this.#stored(text);
    if (isTyped) this.#field.value = typed;
  }

  /** The text that the server has. */
  #stored(text) {
    this.#field.defaultValue = text;
    this.#field.value = text;
    this.parentElement.querySelector("[data-instructions-set]").hidden = text === "";
  }

  #showError(sentence) {
    const error = this.querySelector("[data-error]");
    error.textContent = sentence;
    error.hidden = sentence === "";
  }
}
