import { fromTemplate, nameConversation, sendForm } from "../helpers/dom.js";

/**
 * The dialog with the instructions for the chat of the page, made from a template while it is open. Without it the
 * browser opens their page.
 *
 * Fires "chat:notice" with the answer to a saved form.
 */
export class ChatInstructions extends HTMLElement {
  #stored = null; // the text that the server has; null: that of the template
  #typed = null; // a text that was not saved
  #listening = new AbortController();

  connectedCallback() {
    const { signal } = this.#listening;
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

  get #conversation() {
    return document.querySelector("chat-transcript").conversation;
  }

  #open() {
    this.parentElement.querySelector("[data-chat-menu]").open = false;
    this.append(fromTemplate(this.querySelector("template")));
    nameConversation(this, this.#conversation);
    this.#stored ??= this.#field.value;
    this.#field.value = this.#typed ?? this.#stored;
    this.#form.addEventListener("submit", (event) => this.#save(event));
    this.querySelector("[data-close]").addEventListener("click", (event) => {
      event.preventDefault(); // it leads to the page that is shown
      event.stopPropagation();
      this.#dialog.close();
    });
    this.#dialog.addEventListener("close", () => this.#closed());
    this.#dialog.showModal();
    this.#field.focus();
  }

  #closed() {
    const text = this.#field.value;
    this.#typed = text === this.#stored ? null : text;
    this.#dialog.remove();
  }

  async #save(event) {
    event.preventDefault();
    const text = this.#field.value.trim();
    const { isDone, message } = await sendForm(this.#form.action, new FormData(this.#form));
    if (!isDone) {
      const error = this.querySelector("[data-error]");
      error.textContent = message;
      error.hidden = false;
      return;
    }
    this.#show(text);
    this.#field.value = text;
    this.#dialog.close();
    this.dispatchEvent(new CustomEvent("chat:notice", { detail: message, bubbles: true }));
  }

  /** Another tab has stored instructions: a text that is being changed here stays. */
  #changed({ conversation, system_prompt: text }) {
    if (conversation !== this.#conversation) return;
    const isChanged = this.#dialog !== null && this.#field.value !== this.#stored;
    this.#show(text);
    if (this.#dialog !== null && !isChanged) this.#field.value = text;
  }

  /** The server has this text. */
  #show(text) {
    this.#stored = text;
    this.parentElement.querySelector("[data-instructions-set]").hidden = text === "";
  }
}
