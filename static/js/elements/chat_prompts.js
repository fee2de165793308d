import { fetchJSON, fromTemplate } from "../helpers/dom.js";

const VARIABLE = /\{\{\s*([\p{L}\p{N}_][\p{L}\p{N}_ .-]{0,39}?)\s*\}\}/gu; // as in conversations/prompts.py
const MAX_VARIABLES = 20;

/**
 * The prompt library in the composer: a combobox with a listbox in a dialog (WAI-ARIA), opened by "/" in an empty
 * field or by its button. Variables are asked for in a form, and the text is put into the message field.
 */
export class ChatPrompts extends HTMLElement {
  #prompts = null;
  #shown = [];
  #selected = 0;
  #prompt = null; // whose variables are asked for
  #typed = ""; // what opened the dialog, put back when it is left

  connectedCallback() {
    this.querySelector("[data-open]").addEventListener("click", (event) => {
      if (event.ctrlKey || event.metaKey || event.shiftKey) return;
      event.preventDefault();
      this.open("");
    });
  }

  async open(typed) {
    this.#typed = typed;
    this.#prompt = null;
    this.#make();
    this.#choice.hidden = false;
    this.#form.hidden = true;
    this.#field.value = "";
    this.#show();
    this.#dialog.showModal();
    this.#field.focus();
    const found = await fetchJSON(this.dataset.url);
    this.#prompts = found?.prompts ?? null;
    this.#show();
  }

  // --- Internal

  get #dialog() {
    return this.querySelector("dialog");
  }

  get #choice() {
    return this.querySelector("[data-choose-prompt]");
  }

  get #form() {
    return this.querySelector("[data-variables]");
  }

  get #field() {
    return this.querySelector("[role=combobox]");
  }

  get #list() {
    return this.querySelector("[role=listbox]");
  }

  get #composer() {
    return this.closest("chat-composer");
  }

  /** Make the dialog when it is opened first: most pages never need it. */
  #make() {
    if (this.#dialog !== null) return;
    this.append(fromTemplate(this.querySelector("template[data-dialog]")));
    this.#field.addEventListener("input", () => {
      this.#selected = 0;
      this.#show();
    });
    this.#field.addEventListener("keydown", (event) => this.#key(event));
    this.#list.addEventListener("mousedown", (event) => event.preventDefault()); // the field keeps the focus
    this.#list.addEventListener("click", (event) => {
      const option = event.target.closest("[role=option]");
      if (option !== null) this.#pick(this.#shown[[...this.#list.children].indexOf(option)]);
    });
    this.#dialog.addEventListener("click", (event) => {
      if (event.target === this.#dialog) this.#dialog.close(""); // the backdrop
    });
    this.#dialog.addEventListener("close", () => this.#closed());
    // Neither the composer nor the page acts on what is typed here.
    for (const name of ["input", "keydown", "submit"]) {
      this.#dialog.addEventListener(name, (event) => event.stopPropagation());
    }
  }

  #show() {
    const words = this.#field.value.toLowerCase().split(/\s+/).filter(Boolean);
    const matches = (text) => words.every((word) => text.toLowerCase().includes(word));
    const all = this.#prompts ?? [];
    const byTitle = all.filter(({ title }) => matches(title));
    this.#shown = [...byTitle, ...all.filter((one) => !byTitle.includes(one) && matches(`${one.title} ${one.text}`))];
    this.#selected = Math.min(this.#selected, Math.max(0, this.#shown.length - 1));
    const template = this.querySelector("template[data-option]");
    const options = this.#shown.map(({ title, text }, index) => {
      const option = fromTemplate(template);
      option.id = `prompt-option-${index}`;
      option.title = text.slice(0, 300);
      option.querySelector(".palette-name").textContent = title;
      return option;
    });
    this.#list.replaceChildren(...options);
    this.#select(this.#selected);
    const { none, failed, empty: hasNone } = this.querySelector(".palette-empty").dataset;
    const isFailed = this.#prompts === null && this.#dialog.open;
    const empty = isFailed ? failed : all.length === 0 ? hasNone : none;
    this.querySelector(".palette-empty").textContent = this.#shown.length > 0 || !this.#dialog.open ? "" : empty;
  }

  #select(index) {
    this.#selected = index;
    [...this.#list.children].forEach((option, at) => option.setAttribute("aria-selected", String(at === index)));
    const option = this.#list.children[index];
    if (option === undefined) this.#field.removeAttribute("aria-activedescendant");
    else this.#field.setAttribute("aria-activedescendant", option.id);
    option?.scrollIntoView({ block: "nearest" });
  }

  #key(event) {
    const last = this.#shown.length - 1;
    const { key } = event;
    if (key === "Enter" && !event.isComposing && event.keyCode !== 229) this.#pick(this.#shown[this.#selected]);
    else if (key === "ArrowDown" && last >= 0) this.#select(this.#selected === last ? 0 : this.#selected + 1);
    else if (key === "ArrowUp" && last >= 0) this.#select(this.#selected === 0 ? last : this.#selected - 1);
    else if (key === "Backspace" && this.#field.value === "") {
      this.#typed = "";
      this.#dialog.close("");
    } else return;
    event.preventDefault();
  }

  #pick(prompt) {
    if (prompt === undefined) return;
    this.#prompt = prompt;
    const names = [...new Set([...prompt.text.matchAll(VARIABLE)].map(([, name]) => name))].slice(0, MAX_VARIABLES);
    if (names.length === 0) {
      this.#dialog.close("insert");
      return;
    }
    this.querySelector("[data-prompt-title]").textContent = prompt.title;
    this.querySelector("[data-fields]").replaceChildren(...names.map(fieldOf));
    this.#choice.hidden = true;
    this.#form.hidden = false;
    this.#form.querySelector("input").focus();
  }

  #closed() {
    const field = this.#composer.querySelector("textarea");
    if (field.value === "/" && this.#typed === "/") field.value = "";
    if (this.#dialog.returnValue !== "insert" || this.#prompt === null) {
      if (this.#prompt === null && this.#typed !== "") this.#composer.restore(`${this.#typed}${this.#field.value}`);
      else this.#composer.focusField();
    } else {
      const values = new Map([...this.#form.querySelectorAll("input")].map(({ name, value }) => [name, value]));
      this.#composer.restore(this.#prompt.text.replace(VARIABLE, (whole, name) => values.get(name) || whole));
    }
    this.#dialog.returnValue = "";
  }
}

function fieldOf(name) {
  const label = document.createElement("label");
  label.className = "field";
  label.dir = "auto";
  const input = document.createElement("input");
  Object.assign(input, { className: "input", name, autocomplete: "off", maxLength: 2_000, dir: "auto" });
  label.append(name, input);
  return label;
}
