import { ngettext } from "../helpers/gettext.js";

/**
 * The message that is sent when the present reply has ended, above the message field. The server keeps it: this
 * element shows its state (`next.updated`) and changes it. Without a connection the browser submits the form.
 */
export class ChatNext extends HTMLElement {
  #stored = null; // the state as the server has it: {text, files, paused, message}; `files` is their number
  #sending = new Map(); // {text, files} that the server has not acknowledged, by client_id

  connectedCallback() {
    this.#stored = stateOf(this);
    this.addEventListener("submit", (event) => this.#submitted(event));
  }

  /** Show a text that is on its way to the server. */
  showSending({ client_id: clientId, text, attachments = [] }) {
    this.#sending.set(clientId, { text, files: attachments.length });
    this.#show();
  }

  /** A text of `showSending` was not accepted. */
  unsend(clientId) {
    if (this.#sending.delete(clientId)) this.#show();
  }

  /** Show the state of an event of the chat that is shown. */
  receive({ client_id: clientId, text = "", attachments = [], paused = false, message = "", taken }) {
    this.#sending.delete(clientId);
    // The files of an event with `taken` are those that go back into the message field.
    const isKnown = this.#stored.paused && this.#stored.message === message;
    this.#stored = { text, files: taken === undefined ? attachments.length : 0, paused, message };
    this.#show();
    if (taken !== undefined) this.closest("chat-composer").takeBack(taken, attachments);
    else if (paused && message && !isKnown) this.#announce(message);
  }

  /** Take the state of a fetched page. */
  sync(page) {
    const fresh = page.querySelector("chat-next");
    if (fresh === null) return;
    this.#stored = stateOf(fresh);
    this.#show();
  }

  /** Take the message back into the message field; false if there is none. */
  edit() {
    if (this.hidden || this.#sending.size > 0) return false;
    this.querySelector("[value=edit]").click();
    return true;
  }

  // --- Internal

  #submitted(event) {
    const { connection } = this.closest("chat-app");
    const { conversation } = this.closest("chat-composer").dataset;
    if (connection.send({ type: `next.${event.submitter.value}`, conversation })) event.preventDefault();
  }

  #show() {
    const { paused, message } = this.#stored;
    const all = [this.#stored, ...this.#sending.values()];
    const shown = all.map(({ text }) => text).filter(Boolean).join("\n\n");
    const count = all.reduce((sum, { files }) => sum + files, 0);
    const hadFocus = this.contains(document.activeElement);
    this.hidden = shown === "" && count === 0;
    const files = this.querySelector("[data-files]");
    files.textContent = count === 0 ? "" : ngettext("{count} file", "{count} files", count);
    files.hidden = count === 0;
    files.dataset.files = count;
    this.toggleAttribute("data-paused", paused);
    this.toggleAttribute("data-sending", this.#sending.size > 0);
    this.querySelector("[data-state]").textContent = paused ? this.dataset.pausedLabel : this.dataset.waitingLabel;
    this.querySelector("[data-text]").textContent = shown;
    const problem = this.querySelector("[data-problem]");
    problem.textContent = message;
    problem.hidden = message === "";
    this.querySelector("[value=send]").hidden = !paused;
    if (hadFocus && !this.contains(document.activeElement)) this.closest("chat-composer").focusField();
  }

  #announce(sentence) {
    this.dispatchEvent(new CustomEvent("chat:announce", { detail: sentence, bubbles: true }));
  }
}

/** The state that an element was rendered with. */
function stateOf(element) {
  return {
    text: element.querySelector("[data-text]").textContent,
    files: Number(element.querySelector("[data-files]").dataset.files),
    paused: element.hasAttribute("data-paused"),
    message: element.querySelector("[data-problem]").textContent,
  };
}
