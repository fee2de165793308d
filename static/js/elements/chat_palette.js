import { fetchPage, fromTemplate } from "../helpers/dom.js";
import { debounce } from "../helpers/timing.js";
import { closeMenus, isAvailable, keyName } from "./chat_keys.js";

const MAX_OPTIONS = 30;
const SEARCH_AFTER = 150; // milliseconds without a key

/** The command palette: a combobox over chats, also those that the search finds, actions and pages. */
export class ChatPalette extends HTMLElement {
  #selected = 0;
  #shown = []; // the entries of the options
  #found = []; // the entries of chats that the server has found
  #searchSoon = debounce(() => this.#search(), SEARCH_AFTER);

  connectedCallback() {
    this.#field.addEventListener("input", () => this.#typed());
    this.#field.addEventListener("keydown", (event) => this.#key(event));
    this.#list.addEventListener("click", (event) => this.#clicked(event));
    this.#list.addEventListener("mousedown", (event) => event.preventDefault()); // the field keeps the focus
    this.#dialog.addEventListener("click", (event) => {
      if (event.target === this.#dialog) this.#dialog.close(); // the backdrop
    });
  }

  open() {
    closeMenus();
    this.#field.value = "";
    this.#found = [];
    this.#dialog.showModal();
    this.#show();
    this.#field.focus();
  }

  // --- Internal

  get #dialog() {
    return this.querySelector("dialog");
  }

  get #field() {
    return this.querySelector("[role=combobox]");
  }

  get #list() {
    return this.querySelector("[role=listbox]");
  }

  /** Chats first, as they are looked for most; each entry is {name, icon} and `href` or `action`. */
  get #entries() {
    const chats = [...document.querySelectorAll("chat-sidebar [data-id] > a")].map((link) => ({
      name: link.querySelector(".sidebar-title").textContent,
      icon: "chats",
      href: link.href,
    }));
    const commands = [...this.querySelector("template[data-commands]").content.querySelectorAll("i")]
      .filter(({ dataset }) => dataset.icon && (dataset.href || isAvailable(dataset.action)));
    return [...chats, ...commands.map((each) => ({ name: each.textContent, ...each.dataset }))];
  }

  #typed() {
    this.#found = [];
    this.#show();
    this.#searchSoon();
  }

  async #search() {
    const query = this.#field.value;
    if (!query.trim() || !this.#dialog.open) return;
    const url = document.querySelector("chat-search").dataset.results;
    const { page } = await fetchPage(`${url}?${new URLSearchParams({ q: query })}`);
    if (page === null || query !== this.#field.value) return;
    this.#found = [...page.querySelectorAll("a.result")].map((link) => ({
      name: link.querySelector(".result-title").textContent,
      icon: "search",
      href: link.href,
    }));
    if (this.#found.length > 0) this.#show(this.#selected);
  }

  #show(selected = 0) {
    const words = plain(this.#field.value).split(/\s+/);
    const entries = this.#entries;
    const found = entries.filter(({ name }) => words.every((word) => plain(name).includes(word)));
    const isSearch = this.#field.value.trim() !== "";
    // Without a search a few chats leave the commands in sight.
    const chats = found.filter(({ icon, action }) => icon === "chats" && !action);
    const hidden = new Set(isSearch ? [] : chats.slice(5));
    const listed = new Set(found.map(({ href }) => href && new URL(href, location.href).pathname));
    // Below the others, so that nothing moves under the pointer.
    const further = this.#found.filter(({ href }) => !listed.has(new URL(href).pathname));
    this.#shown = [...found.filter((entry) => !hidden.has(entry)), ...further].slice(0, MAX_OPTIONS);
    this.#list.replaceChildren(...this.#shown.map((entry, index) => this.#option(entry, index)));
    const empty = this.querySelector(".palette-empty");
    empty.textContent = this.#shown.length > 0 ? "" : empty.dataset.none;
    this.#select(selected);
  }

  #option({ name, icon, key = "", commandKey = "" }, index) {
    const option = fromTemplate(this.querySelector("template[data-option]"));
    option.id = `palette-${index}`;
    option.querySelector("use").setAttribute("href", `#i-${icon}`);
    option.querySelector(".palette-name").textContent = name;
    const keys = option.querySelector("kbd");
    if (key || commandKey) keys.textContent = keyName({ key, commandKey });
    else keys.remove();
    return option;
  }

  #select(index) {
    const count = this.#shown.length;
    this.#selected = count > 0 ? (index + count) % count : 0;
    for (const [each, option] of [...this.#list.children].entries()) {
      option.setAttribute("aria-selected", String(each === this.#selected));
    }
    const option = this.#list.children[this.#selected];
    if (option === undefined) this.#field.removeAttribute("aria-activedescendant");
    else this.#field.setAttribute("aria-activedescendant", option.id);
    option?.scrollIntoView({ block: "nearest" });
  }

  #key(event) {
    if (event.isComposing || event.keyCode === 229) return;
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step !== undefined) this.#select(this.#selected + step);
    else if (event.key === "Enter") this.#choose(this.#shown[this.#selected]);
    else return;
    event.preventDefault();
  }

  #clicked(event) {
    const option = event.target.closest("[role=option]");
    if (option !== null) this.#choose(this.#shown[[...this.#list.children].indexOf(option)]);
  }

  #choose(entry) {
    if (entry === undefined) return;
    this.#dialog.close();
    if (entry.href) this.closest("chat-app").navigation.go(entry.href);
    else this.closest("chat-keys").perform(entry.action);
  }
}

/** A text in which upper case, accents and forms of letters make no difference. */
function plain(text) {
  return text.normalize("NFKD").replace(/\p{M}/gu, "").toLocaleLowerCase().trim();
}
