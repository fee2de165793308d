import { fetchPage } from "../helpers/dom.js";
import { debounce } from "../helpers/timing.js";

const SEARCH_AFTER = 150; // milliseconds without a key

/** The search of the sidebar: results replace the list of chats while its field has text. */
export class ChatSearch extends HTMLElement {
  #searchSoon = debounce(() => this.#search(), SEARCH_AFTER);

  connectedCallback() {
    this.#field.addEventListener("input", () => this.#searchSoon());
    this.addEventListener("keydown", (event) => this.#key(event));
    if (this.#field.value) this.#search(); // kept by the browser
  }

  /** Focus the field; on a phone open the sheet that it is in. */
  focusField() {
    const sidebar = this.closest("[popover]");
    if (!this.checkVisibility()) sidebar.showPopover();
    this.#field.focus();
    this.#field.select();
  }

  // --- Internal

  get #field() {
    return this.querySelector("input");
  }

  get #found() {
    return this.querySelector("[data-found]");
  }

  get #links() {
    return [...this.#found.querySelectorAll("a")];
  }

  async #search() {
    const query = this.#field.value;
    if (!query.trim()) {
      this.#show(null);
      return;
    }
    const { page } = await fetchPage(`${this.dataset.results}?${new URLSearchParams({ q: query })}`);
    if (query === this.#field.value && page !== null) this.#show(page.body.childNodes);
  }

  #show(nodes) {
    this.#found.replaceChildren(...(nodes ?? []));
    this.#found.hidden = nodes === null;
    this.parentElement.querySelector("[data-lists]").hidden = nodes !== null;
  }

  #key(event) {
    if (event.isComposing) return;
    const links = this.#links;
    const at = links.indexOf(document.activeElement);
    if (event.key === "Escape" && this.#field.value) {
      event.preventDefault();
      this.#field.value = "";
      this.#show(null);
      this.#field.focus();
    } else if (event.key === "ArrowDown" && at + 1 < links.length) {
      event.preventDefault();
      links[at + 1].focus();
    } else if (event.key === "ArrowUp" && at >= 0) {
      event.preventDefault();
      (links[at - 1] ?? this.#field).focus();
    } else if (event.key === "Enter" && event.target === this.#field && links.length > 0) {
      event.preventDefault();
      links[0].click();
    }
  }
}
