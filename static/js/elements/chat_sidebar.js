import { fetchPage, fromTemplate, removeEmptyLists } from "../helpers/dom.js";
import { debounce } from "../helpers/timing.js";

const NEW = 60_000; // milliseconds: an event about a chat that changed just now
const PAGE = 40; // chats of the list that a page has
const RELOAD_AFTER = 300;

/** The list of chats, kept current in every tab; on a phone a sheet that closes without the focus. */
export class ChatSidebar extends HTMLElement {
  #current = "";
  #deleted = new Set(); // late events and pages still contain them
  #reloadSoon = debounce(() => this.#reload(), RELOAD_AFTER);
  #end = new IntersectionObserver((entries) => {
    if (entries.some((entry) => entry.isIntersecting)) this.#loadMore();
  });

  connectedCallback() {
    this.addEventListener("focusout", (event) => this.#closeWhenLeft(event));
    matchMedia("(max-width: 48rem)").addEventListener("change", () => this.close());
    this.#watchEnd();
  }

  /** The id of the chat that the page shows; empty on other pages. */
  set current(id) {
    this.#current = id;
    for (const item of this.#items) this.#markCurrent(item);
    for (const link of this.querySelectorAll("a[data-page]")) markPage(link, link.pathname === location.pathname);
  }

  /** The number of chats with an unread reply. */
  get unread() {
    return this.#list.querySelectorAll("[data-unread]").length;
  }

  /** Close the sheet of a phone. */
  close() {
    if (this.matches(":popover-open")) this.hidePopover();
  }

  /** The name of a chat, or undefined if it is not in the list. */
  title(id) {
    return this.#item(id)?.querySelector(".sidebar-title").textContent;
  }

  /** Whether a chat was deleted while this page was open. */
  isDeleted(id) {
    return this.#deleted.has(id);
  }

  /** Remember no deletions: pages that are requested from now on have none of the chats. */
  forgetDeleted() {
    this.#deleted.clear();
  }

  isUnread(id) {
    return this.#item(id)?.hasAttribute("data-unread") ?? false;
  }

  markRead(id) {
    const item = this.#item(id);
    if (item !== null) this.#mark(item, { active: item.querySelector(".sidebar-active") !== null });
  }

  /** Show a conversation as a `conversation.updated` event describes it. */
  update(event) {
    const id = event.conversation;
    if (event.deleted) this.#deleted.add(id);
    if (event.restored) this.#deleted.delete(id);
    const shown = this.#item(id);
    if (this.#deleted.has(id) || event.archived) {
      shown?.remove();
      removeEmptyLists(this);
      return;
    }
    const item = shown ?? fromTemplate(this.querySelector("template[data-item]"));
    const isPinned = event.pinned ?? false;
    const isMoved = event.updated_at !== undefined && Date.parse(event.updated_at) !== Date.parse(item.dataset.updated);
    const changesList = shown === null || isPinned !== item.hasAttribute("data-pinned");
    item.dataset.id = id;
    item.dataset.updated = event.updated_at;
    item.toggleAttribute("data-pinned", isPinned);
    const link = item.querySelector("a");
    link.href = event.url;
    link.querySelector(".sidebar-title").textContent = event.title;
    this.#mark(item, event);
    this.markProject(item, event.project);
    this.#markCurrent(item);
    // A new name leaves a chat in its row; a new message moves it to the top.
    if (changesList && isPinned) this.#putPinned(item);
    else if (changesList && Date.now() - Date.parse(event.updated_at) > NEW) this.#reloadSoon();
    else if (changesList || (isMoved && !isPinned)) this.#putFirst(item);
  }

  /** Show in a row of chats which project it belongs to; an id, or undefined. */
  markProject(row, id) {
    row.querySelector(".row-project")?.remove();
    if (id === undefined) delete row.dataset.project;
    else row.dataset.project = id;
    const name = this.projects.name(id);
    if (name === undefined) return;
    const mark = fromTemplate(this.querySelector("template[data-project-name]"));
    mark.textContent = name;
    const link = row.querySelector("a");
    link.insertBefore(mark, link.querySelector("time"));
  }

  get projects() {
    return this.querySelector("chat-projects");
  }

  /** Show all chats anew, as after a change of many of them. */
  reload() {
    this.#reloadSoon();
  }

  /** Replace the list by that of a fetched page. */
  replaceWith(page) {
    const list = page.querySelector("chat-sidebar [data-list]");
    if (list === null) return;
    this.projects.replaceWith(page);
    if (this.#items.length > PAGE) this.#reloadSoon();
    else this.#show(list.childNodes);
  }

  // --- Internal

  get #list() {
    return this.querySelector("[data-list]");
  }

  get #items() {
    return this.#list.querySelectorAll("[data-id]");
  }

  #item(id) {
    return this.#list.querySelector(`[data-id="${id}"]`);
  }

  #show(nodes) {
    const list = this.#list;
    if (list.querySelector("[data-renaming]") !== null) return; // shown by a later event or page
    const scrolled = list.parentElement;
    const top = scrolled.scrollTop;
    const focused = list.contains(document.activeElement) ? document.activeElement.closest("[data-id]")?.dataset.id : null;
    list.replaceChildren(...nodes);
    for (const item of this.#items) if (this.#deleted.has(item.dataset.id)) item.remove();
    removeEmptyLists(this);
    this.current = this.#current;
    scrolled.scrollTop = top;
    if (focused) this.#item(focused)?.querySelector("a").focus({ preventScroll: true });
    this.#changed();
  }

  #changed() {
    this.#watchEnd();
    this.dispatchEvent(new CustomEvent("chat:listed", { bubbles: true }));
  }

  /** Fetch the list anew, with as many chats as it has now. */
  async #reload() {
    const { page } = await fetchPage(`${this.#list.dataset.url}?rows=${Math.max(PAGE, this.#items.length)}`);
    if (page !== null) this.#show(page.body.childNodes);
  }

  // --- Internal: the end of the list

  #watchEnd() {
    this.#end.disconnect();
    const more = this.#list.querySelector("[data-more]");
    if (more !== null) this.#end.observe(more);
  }

  async #loadMore() {
    const more = this.#list.querySelector("[data-more]");
    if (more === null || more.hasAttribute("data-loading")) return;
    more.toggleAttribute("data-loading", true);
    const { page } = await fetchPage(more.dataset.more);
    if (!more.isConnected) return; // the list was replaced meanwhile
    if (page === null) {
      more.removeAttribute("data-loading"); // its link still works
      return;
    }
    for (const item of page.querySelectorAll("[data-id]")) {
      if (this.#item(item.dataset.id) !== null || this.#deleted.has(item.dataset.id)) item.remove();
    }
    removeEmptyLists(page);
    const heading = page.querySelector(".sidebar-day");
    const headings = this.#list.querySelectorAll(".sidebar-day");
    const last = headings[headings.length - 1];
    if (heading !== null && heading.textContent === last?.textContent) {
      last.nextElementSibling.append(...heading.nextElementSibling.children);
      heading.nextElementSibling.remove();
      heading.remove();
    }
    more.replaceWith(...page.body.childNodes);
    this.current = this.#current;
    this.#changed();
  }

  // --- Internal: rows

  #mark(item, { active = false, unread = false }) {
    const link = item.querySelector("a");
    link.querySelector(".sidebar-active, .sidebar-unread")?.remove();
    item.toggleAttribute("data-unread", unread);
    const name = active ? "active" : unread ? "unread" : null;
    if (name !== null) link.append(fromTemplate(this.querySelector(`template[data-${name}]`)));
  }

  #markCurrent(item) {
    markPage(item.querySelector("a"), item.dataset.id === this.#current);
  }

  #putFirst(item) {
    const list = this.#list;
    list.querySelector("[data-empty]")?.remove();
    const pins = list.querySelector("[data-pins]");
    const first = pins === null ? list.querySelector(".sidebar-day") : pins.nextElementSibling.nextElementSibling;
    let rows = first?.nextElementSibling;
    const today = this.querySelector("template[data-day]");
    if (first?.textContent !== today.content.textContent) {
      rows = document.createElement("ul");
      const place = pins?.nextElementSibling ?? null;
      if (place === null) list.prepend(fromTemplate(today), rows);
      else place.after(fromTemplate(today), rows);
    }
    this.#put(item, rows);
  }

  #putPinned(item) {
    const list = this.#list;
    list.querySelector("[data-empty]")?.remove();
    if (list.querySelector("[data-pins]") === null) {
      list.prepend(fromTemplate(this.querySelector("template[data-pin-heading]")), document.createElement("ul"));
    }
    this.#put(item, list.querySelector("[data-pins]").nextElementSibling);
  }

  #put(item, rows) {
    const hadFocus = item.contains(document.activeElement);
    rows.prepend(item);
    if (hadFocus) item.querySelector("a").focus();
    removeEmptyLists(this);
  }

  #closeWhenLeft(event) {
    // Without a related target (a click into the sheet, another window) the focus has not left it.
    const target = event.relatedTarget;
    if (target !== null && !this.contains(target) && target.closest("chat-row-menu") === null) this.close();
  }
}

function markPage(link, isCurrent) {
  if (isCurrent) link.setAttribute("aria-current", "page");
  else link.removeAttribute("aria-current");
}
