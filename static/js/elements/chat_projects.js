import { fromTemplate } from "../helpers/dom.js";

const YEAR = 31_536_000; // seconds

/** The projects of the sidebar, kept current in every tab; a row of chats that is dropped on one moves into it. */
export class ChatProjects extends HTMLElement {
  #dragged = null; // the row

  connectedCallback() {
    const app = this.closest("chat-app");
    this.querySelector("details").addEventListener("toggle", ({ target }) => {
      // The server reads it, so that the first paint is right.
      document.cookie = `projects=${target.open ? "open" : "closed"}; path=/; max-age=${YEAR}; samesite=lax`;
    });
    app.addEventListener("dragstart", (event) => this.#dragStarted(event));
    app.addEventListener("dragend", () => this.#dragEnded());
    this.addEventListener("dragover", (event) => this.#over(event));
    this.addEventListener("dragleave", (event) => this.#markTarget(this.#target(event.relatedTarget)));
    this.addEventListener("drop", (event) => this.#dropped(event));
  }

  /** The name of a project; undefined if there is none with this id. */
  name(id) {
    return this.#item(id)?.querySelector(".sidebar-title").textContent;
  }

  /** Show a project as a `project.updated` event describes it. */
  update({ project: id, name, url, deleted }) {
    let item = this.#item(id);
    if (deleted) item?.remove();
    else {
      item ??= fromTemplate(this.querySelector("template[data-project-item]"));
      item.dataset.projectId = id;
      item.querySelector("a").setAttribute("href", url);
      item.querySelector(".sidebar-title").textContent = name;
      const next = this.#items.find((other) => other !== item && nameOf(other).localeCompare(name) > 0);
      this.#list.insertBefore(item, next ?? this.querySelector(".sidebar-out"));
    }
    this.#fillMenus();
  }

  /** Replace the projects by those of a fetched page. */
  replaceWith(page) {
    const fetched = page.querySelector("chat-projects [data-projects]");
    if (fetched === null || fetched.textContent === this.#list.textContent) return;
    this.#list.replaceWith(fetched);
    this.#fillMenus();
    this.markRows();
  }

  /** Show the present names of projects in all rows of chats. */
  markRows() {
    const sidebar = this.closest("chat-sidebar");
    for (const row of document.querySelectorAll("[data-id][data-project]")) {
      if (row.closest("chat-list[data-project]") === null) sidebar.markProject(row, row.dataset.project);
    }
  }

  /** Show the project of the chat that the page shows, above it and in its menu. */
  showIn(page, id) {
    const link = page.querySelector("[data-chat-project]");
    const name = this.name(id);
    link.hidden = name === undefined;
    link.textContent = name ?? "";
    if (name !== undefined) link.href = this.#item(id).querySelector("a").href;
    for (const button of page.querySelectorAll("[data-of-chat] [data-move]")) {
      button.hidden = button.dataset.move === (id ?? "none");
    }
  }

  // --- Internal

  get #list() {
    return this.querySelector("[data-projects]");
  }

  get #items() {
    return [...this.#list.querySelectorAll("[data-project-id]:not(.sidebar-out)")];
  }

  #item(id) {
    return id === undefined ? null : this.#list.querySelector(`[data-project-id="${id}"]:not(.sidebar-out)`);
  }

  /** Offer the present projects in all menus that move chats. */
  #fillMenus() {
    for (const menu of document.querySelectorAll("[data-move-items]")) {
      const isOfBulk = menu.hasAttribute("data-of-bulk");
      const isDisabled = menu.parentElement.querySelector("[data-bulk]")?.disabled ?? false;
      const buttons = this.#items.map((item) => {
        const button = fromTemplate(this.querySelector("template[data-move-item]"));
        button.dataset.move = item.dataset.projectId;
        button.setAttribute("formaction", this.#moveUrl(item.dataset.projectId));
        button.querySelector("bdi").textContent = nameOf(item);
        button.toggleAttribute("data-bulk", isOfBulk);
        button.disabled = isOfBulk && isDisabled;
        return button;
      });
      menu.replaceChildren(...buttons);
    }
  }

  #moveUrl(id) {
    return this.#form.getAttribute("action").replace("none", id);
  }

  get #form() {
    return this.querySelector("[data-drop-form]");
  }

  // --- Internal: dragging

  #dragStarted(event) {
    const row = event.target.closest?.("[data-id]") ?? null;
    if (row === null) return;
    this.#dragged = row;
    event.dataTransfer.effectAllowed = "copyMove"; // a link may also be dropped elsewhere
    this.querySelector(".sidebar-out").hidden = row.dataset.project === undefined;
    this.querySelector("details").open = true;
  }

  #dragEnded() {
    this.#dragged = null;
    this.querySelector(".sidebar-out").hidden = true;
    this.#markTarget(null);
  }

  #target(element) {
    return this.#dragged === null ? null : (element?.closest?.("[data-project-id]") ?? null);
  }

  #over(event) {
    const target = this.#target(event.target);
    this.#markTarget(target);
    if (target === null) return;
    event.preventDefault();
    event.dataTransfer.dropEffect = "move";
  }

  #markTarget(target) {
    for (const item of this.querySelectorAll("[data-drop]")) item.removeAttribute("data-drop");
    target?.toggleAttribute("data-drop", true);
  }

  #dropped(event) {
    const target = this.#target(event.target);
    if (target === null) return;
    event.preventDefault();
    const form = this.#form;
    form.elements.chat.value = this.#dragged.dataset.id;
    const button = form.querySelector("button");
    button.setAttribute("formaction", this.#moveUrl(target.dataset.projectId));
    form.requestSubmit(button);
    this.#dragEnded();
  }
}

function nameOf(item) {
  return item.querySelector(".sidebar-title").textContent;
}
