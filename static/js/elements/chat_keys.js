import { gettext } from "../helpers/gettext.js";

const FIELDS = "input:not([type=checkbox], [type=radio]), textarea, select, [contenteditable]";
const OPEN = "dialog[open], :popover-open, details.menu[open]";

// The element that an action clicks; also the one whose tooltip names the keys.
const TARGETS = {
  palette: () => document.querySelector("[data-open=palette]"),
  help: () => document.querySelector("[data-open=keys]"),
  new: () => document.querySelector(".sidebar-new a"),
  send: () => document.querySelector("[data-send-button]"),
  stop: () => document.querySelector("[data-stop]:not([hidden], :disabled)"),
  edit: () => last(".message.own .action-edit"),
  copy: () => last(".message.reply [data-copy]"),
};

/** Keyboard shortcuts of the page, and the sheet that lists them. */
export class ChatKeys extends HTMLElement {
  #listening = null;
  #shortcuts = []; // {action, key, commandKey}

  connectedCallback() {
    this.#listening = new AbortController();
    const { signal } = this.#listening;
    const commands = this.querySelector("template[data-commands]").content;
    this.#shortcuts = [...commands.querySelectorAll("[data-action]")].map(({ dataset }) => ({ ...dataset }));
    if (isMac()) for (const key of document.querySelectorAll("kbd[data-command]")) key.textContent = "⌘";
    document.addEventListener("keydown", (event) => this.#key(event), { signal });
    document.addEventListener("click", (event) => this.#clicked(event), { signal });
    for (const type of ["pointerover", "focusin"]) {
      document.addEventListener(type, ({ target }) => this.#nameKeys(target), { signal });
    }
  }

  disconnectedCallback() {
    this.#listening.abort();
  }

  /** Carry out an action of chat/web/shortcuts.py; whether the page has it. */
  perform(action) {
    if (action === "palette") this.querySelector("chat-palette").open();
    else if (action === "help") this.#openSheet();
    else if (action === "search") document.querySelector("chat-search").focusField();
    else if (action === "next") return followChat(1);
    else if (action === "previous") return followChat(-1);
    else if (action === "list") return goToList();
    else if (action === "write") return focusOn(document.querySelector("chat-composer textarea"));
    else if (TARGETS[action]?.()) TARGETS[action]().click();
    else return false;
    return true;
  }

  // --- Internal

  #key(event) {
    if (event.defaultPrevented || event.isComposing || event.keyCode === 229 || event.altKey) return;
    const field = event.target.closest?.(FIELDS) ?? null;
    if (event.ctrlKey || event.metaKey) {
      const shortcut = this.#find(event, "commandKey");
      if (event.ctrlKey === isMac() || shortcut === undefined) return;
      // The browser's own use of the key would be worse than no effect.
      event.preventDefault();
      const open = document.querySelector("dialog[open]");
      if (open !== null) open.close();
      if (open === null || open.id !== { palette: "palette", help: "keys" }[shortcut.action]) this.perform(shortcut.action);
    } else if (event.key === "Escape") {
      const isFree = document.querySelector(`${OPEN}, [data-cancel]`) === null;
      if (isFree && field?.matches("chat-composer textarea")) field.blur();
    } else if (field === null && this.hasAttribute("data-single-keys") && document.querySelector(OPEN) === null) {
      const shortcut = this.#find(event, "key");
      if (shortcut !== undefined && shortcut.key.length === 1 && this.perform(shortcut.action)) event.preventDefault();
    }
  }

  /** Letters without Shift; signs as the layout of the keyboard makes them. */
  #find(event, name) {
    if (event.shiftKey && /^\p{L}$/u.test(event.key)) return undefined;
    return this.#shortcuts.find((shortcut) => shortcut[name] === event.key);
  }

  #clicked(event) {
    const button = event.target.closest("[data-open]");
    if (button !== null) this.perform(button.dataset.open === "keys" ? "help" : button.dataset.open);
  }

  #openSheet() {
    closeMenus();
    document.getElementById("keys").showModal();
  }

  /** Name the keys of a button in its tooltip, and to screen readers. */
  #nameKeys(target) {
    for (const { action, key, commandKey } of this.#shortcuts) {
      const element = TARGETS[action]?.();
      if (!element?.contains(target)) continue;
      const name = element.getAttribute("aria-label") ?? element.textContent.trim();
      element.title = `${name} (${keyName({ key, commandKey })})`;
      const command = isMac() ? "Meta" : "Control";
      element.setAttribute("aria-keyshortcuts", commandKey ? `${command}+${commandKey}` : key);
    }
  }
}

/** Whether the page has what an action acts on. */
export function isAvailable(action) {
  if (action === "next" || action === "previous") return chatLinks().length > 0;
  if (action === "write") return document.querySelector("chat-composer textarea") !== null;
  return TARGETS[action] === undefined || Boolean(TARGETS[action]());
}

/** The keys of a shortcut in short, as tooltips and the palette show them. */
export function keyName({ key, commandKey }) {
  if (!commandKey) return key.length === 1 ? key.toUpperCase() : key;
  return isMac() ? `⌘${commandKey.toUpperCase()}` : `${gettext("Ctrl")} ${commandKey.toUpperCase()}`;
}

/** Close the sidebar of a phone and open menus, over which a dialog opens. */
export function closeMenus() {
  document.querySelector("chat-sidebar")?.close();
  for (const menu of document.querySelectorAll("details.menu[open]")) menu.open = false;
}

function isMac() {
  return /^(Mac|iP)/.test(navigator.platform);
}

function last(selector) {
  return [...document.querySelectorAll(selector)].at(-1) ?? null;
}

function chatLinks() {
  return [...document.querySelectorAll("chat-sidebar [data-id] > a")];
}

function followChat(step) {
  const links = chatLinks();
  const current = links.findIndex((link) => link.hasAttribute("aria-current"));
  const link = links[current === -1 ? (step > 0 ? 0 : -1) : current + step];
  link?.click();
  return link !== undefined;
}

function goToList() {
  const sidebar = document.querySelector("chat-sidebar");
  if (!sidebar.checkVisibility()) sidebar.showPopover();
  return focusOn(sidebar.querySelector("[aria-current]") ?? sidebar.querySelector("[data-id] > a, .sidebar-new a"));
}

function focusOn(element) {
  element?.focus();
  return element !== null;
}
