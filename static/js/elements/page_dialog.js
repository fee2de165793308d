import { fetchPage, sendForm } from "../helpers/dom.js";

/**
 * Opens the form of another page (a link with data-dialog) in a dialog, and sends it from there. A part of a page with
 * several forms (data-dialog-part) stays open, and shows after each what has changed.
 */
export class PageDialog extends HTMLElement {
  #address = "";

  connectedCallback() {
    this.closest("chat-app").addEventListener("click", (event) => {
      const link = event.target.closest("a[data-dialog]");
      const isPlain = event.button === 0 && !(event.ctrlKey || event.metaKey || event.shiftKey || event.altKey);
      if (link === null || !isPlain) return;
      event.preventDefault();
      event.stopPropagation(); // it is no navigation
      this.#leaveMenu(link);
      this.open(link.href);
    }, { capture: true });
    this.addEventListener("submit", (event) => this.#submitted(event));
    this.addEventListener("click", (event) => {
      if (event.target === this.#dialog) this.#dialog.close(); // the backdrop
    });
  }

  get #dialog() {
    return this.querySelector("dialog");
  }

  /** Close the menu of a link; the focus returns to its button after the dialog. */
  #leaveMenu(link) {
    const menu = link.closest("details");
    if (menu === null) return;
    menu.open = false;
    menu.querySelector("summary").focus();
  }

  /** Open the form of the page at an address; without one the browser opens the page. */
  async open(address) {
    const { page } = await fetchPage(address);
    const form = page?.querySelector("[data-dialog-part]") ?? page?.querySelector("[data-dialog-form]");
    this.#address = address;
    if (!form) {
      location.assign(address);
      return;
    }
    this.querySelector("h2").textContent = form.getAttribute("aria-label");
    this.querySelector(".sheet-body").replaceChildren(form);
    if (!this.#dialog.open) this.#dialog.showModal();
  }

  /** Show a part anew, with the focus in the same section of it, whose button was replaced. */
  async #renew(section) {
    await this.open(this.#address);
    const part = this.querySelector("[data-dialog-part]");
    if (part !== null) sectionsOf(part)[section]?.querySelector("input:not([type=hidden]), button")?.focus();
  }

  async #submitted(event) {
    const form = event.target;
    const part = form.closest("[data-dialog-part]");
    if (part === null && !form.matches("[data-dialog-form]")) return;
    event.preventDefault();
    const { isDone, message } = await sendForm(form.getAttribute("action"), new FormData(form, event.submitter));
    if (isDone) {
      if (part === null) this.#dialog.close();
      else await this.#renew(sectionsOf(part).indexOf(form.closest("[data-dialog-part] > div")));
      this.dispatchEvent(new CustomEvent("chat:announce", { detail: message, bubbles: true }));
      return;
    }
    const error = form.querySelector(".errors") ?? document.createElement("p");
    error.className = "errors";
    error.setAttribute("role", "alert");
    error.textContent = message;
    form.prepend(error);
  }
}

function sectionsOf(part) {
  return [...part.querySelectorAll(":scope > div")];
}
