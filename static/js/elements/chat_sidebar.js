import { fromTemplate, removeEmptyLists } from "../helpers/dom.js";

/** The list of chats, kept current in every tab; on a phone a sheet that closes without the focus. */
export class ChatSidebar extends HTMLElement {
  #current = "";
  #deleted = new Set(); // never restored, but late events and pages still contain them

  connectedCallback() {
    this.addEventListener("focusout", (event) => this.#closeWhenLeft(event));
    matchMedia("(max-width: 48rem)").addEventListener("change", () => this.close());
  }

  /** The id of the chat that the page shows; empty on other pages. */
  set current(id) {
    this.#current = id;
    for (const item of this.querySelectorAll("[data-id]")) this.#markCurrent(item);
    for (const link of this.querySelectorAll("a[data-page]")) markPage(link, link.pathname === location.pathname);
  }

  /** Close the sheet of a phone. */
  close() {
    if (this.matches(":popover-open")) this.hidePopover();
  }

  /** The name of a chat, or undefined if it is not in the list. */
  title(id) {
    return this.querySelector(`[data-id="${id}"] .sidebar-title`)?.textContent;
  }

  /** Whether a chat was deleted while this page was open. */
  isDeleted(id) {
    return this.#deleted.has(id);
  }

  /** Show a conversation as a `conversation.updated` event describes it. */
  update(event) {
    if (event.deleted) this.#deleted.add(event.conversation);
    if (this.#deleted.has(event.conversation)) {
      this.#removeDeleted();
      return;
    }
    let item = this.querySelector(`[data-id="${event.conversation}"]`);
    const isNew = item === null;
    if (isNew) item = fromTemplate(this.querySelector("template[data-item]"));
    item.dataset.id = event.conversation;
    const link = item.querySelector("a");
    link.href = event.url;
    link.querySelector(".sidebar-title").textContent = event.title;
    this.#markActive(link, event.active ?? false);
    this.#markCurrent(item);
    // A new name leaves a chat in its row; a new message moves it to the top.
    if (isNew || Date.parse(event.updated_at) !== Date.parse(item.dataset.updated)) {
      item.dataset.updated = event.updated_at;
      this.#putFirst(item);
    }
  }

  /** Replace the list by that of a fetched page. */
  replaceWith(page) {
    const list = page.querySelector("chat-sidebar [data-list]");
    if (list === null) return;
    this.querySelector("[data-list]").replaceChildren(...list.childNodes);
    this.#removeDeleted();
    this.current = this.#current;
  }

  // --- Internal

  #markActive(link, active) {
    link.querySelector(".sidebar-active")?.remove();
    if (active) link.append(fromTemplate(this.querySelector("template[data-active]")));
  }

  #markCurrent(item) {
    markPage(item.querySelector("a"), item.dataset.id === this.#current);
  }

  #putFirst(item) {
    const list = this.querySelector("[data-list]");
    const hadFocus = item.contains(document.activeElement);
    list.querySelector("[data-empty]")?.remove();
    if (list.querySelector(".sidebar-day")?.textContent !== "Today") {
      const heading = fromTemplate(this.querySelector("template[data-day]"));
      list.prepend(heading, document.createElement("ul"));
    }
    list.querySelector("ul").prepend(item);
    if (hadFocus) item.querySelector("a").focus();
    removeEmptyLists(this);
  }

  #removeDeleted() {
    for (const item of this.querySelectorAll("[data-id]")) {
      if (this.#deleted.has(item.dataset.id)) item.remove();
    }
    removeEmptyLists(this);
  }

  #closeWhenLeft(event) {
    // Without a related target (a click into the sheet, another window) the focus has not left it.
    if (event.relatedTarget !== null && !this.contains(event.relatedTarget)) this.close();
  }
}

function markPage(link, isCurrent) {
  if (isCurrent) link.setAttribute("aria-current", "page");
  else link.removeAttribute("aria-current");
}
