import { fetchPage } from "../helpers/dom.js";

const PAUSE = 1_500; // milliseconds between two looks at an import that goes on

/** The import of chats: its progress is fetched until it ends. */
export class ChatImport extends HTMLElement {
  #timer = null;

  connectedCallback() {
    if (this.hasAttribute("data-active")) this.#timer = setTimeout(() => this.#look(), PAUSE);
  }

  disconnectedCallback() {
    clearTimeout(this.#timer);
  }

  async #look() {
    const { page } = document.hidden ? { page: null } : await fetchPage(location.pathname);
    if (!this.isConnected) return;
    const part = page?.querySelector("chat-import");
    if (part) this.replaceWith(part);
    else this.#timer = setTimeout(() => this.#look(), PAUSE);
  }
}
