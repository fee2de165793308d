import { fetchPage, fromTemplate, postForm } from "../helpers/dom.js";

const MOST_COMPARED = 3;

/**
 * The choice of model, effort and temperature. Its selects belong to the form of the composer and keep the
 * choice; the list of models, fetched when the menu is opened, is a searchable view of the first one
 * (WAI-ARIA: combobox with a listbox).
 *
 * With it the models to compare are chosen as well: their check boxes belong to the form, too.
 *
 * Fires "chat:model" when the model changes, and "chat:other-model" ({message, model}) when it was opened by
 * `askFor`.
 */
export class ChatModels extends HTMLElement {
  #stored; // the choice that the server has
  #message = null; // id of the reply that is to be regenerated with another model
  #compares = false; // whether several models are chosen
  #opener = null; // the element that opened the list, unless it is the list's own button

  connectedCallback() {
    this.#stored = this.#shown;
    if (this.querySelector(".model-search") === null) {
      this.#plain.hidden = true;
      this.#plain.after(fromTemplate(this.querySelector("template[data-list]")));
    }
    this.#menu.addEventListener("toggle", () => this.#toggled());
    this.#field.addEventListener("input", () => this.#filter());
    this.#field.addEventListener("keydown", (event) => this.#key(event));
    this.#list.addEventListener("click", (event) => this.#pick(event.target.closest("[role=option]")));
    this.querySelector("[data-prefer-button]").addEventListener("click", () => this.#prefer());
    this.#settings.addEventListener("change", () => this.#show());
    this.#comparing?.querySelector("summary").addEventListener("click", (event) => {
      event.preventDefault();
      event.stopPropagation(); // or the list would be closed as by a click outside
      this.#menu.open = false;
      this.#opener = event.currentTarget;
      this.#compares = true;
      this.#menu.open = true;
    });
    this.#show();
  }

  /** What the user has changed and the server does not have yet, as fields of a frame. */
  get changes() {
    const shown = this.#shown;
    return Object.fromEntries(Object.entries(shown).filter(([name, value]) => value !== this.#stored[name]));
  }

  /** The id of the shown model. */
  get model() {
    return this.#select.value;
  }

  /** The server has stored a choice: of this tab (`own`), or of another one, which changes what is shown. */
  stored({ model, effort = "", temperature = null }, own) {
    const isChanged = Object.keys(this.changes).length > 0;
    if (own || !isChanged) {
      if (this.#has(model)) this.#select.value = model;
      if (this.#effort !== null) this.#effort.value = effort;
      this.#temperature.value = temperature === null ? "" : String(temperature);
      this.#show();
    }
    this.#stored = { ...this.#shown, model, effort: effort || null, temperature };
  }

  /** Take the choice of a fetched page, unless another one was made here. */
  sync(page) {
    const selects = page.querySelectorAll("chat-models select");
    const { model, effort, temperature } = Object.fromEntries(Array.from(selects, ({ name, value }) => [name, value]));
    if (model) this.stored({ model: Number(model), effort, temperature: temperature ? Number(temperature) : null }, false);
  }

  /** Open the list to choose the model of one other reply in place of the reply `message`. */
  askFor(message) {
    this.#message = message;
    this.#opener = document.activeElement;
    this.#menu.open = true;
  }

  open() {
    this.#menu.open = true;
  }

  /** The models were sent to be compared. */
  compared() {
    this.#menu.open = false;
  }

  /** Whether the list has another model than the shown one. */
  get hasOthers() {
    return this.#select.options.length > 1;
  }

  // --- Internal

  get #menu() {
    return this.querySelector("details");
  }

  get #settings() {
    return this.querySelector(".model-settings");
  }

  /** The menu of models to compare, for browsers without scripts; null with a single model. */
  get #comparing() {
    return this.closest("chat-composer").querySelector("[data-compare-menu]");
  }

  get #plain() {
    return this.querySelector("[data-plain]");
  }

  get #select() {
    return this.querySelector("select[name=model]");
  }

  get #effort() {
    return this.querySelector("select[name=effort]");
  }

  get #temperature() {
    return this.querySelector("select[name=temperature]");
  }

  get #field() {
    return this.querySelector("[role=combobox]");
  }

  get #list() {
    return this.querySelector("[role=listbox]");
  }

  get #shown() {
    const temperature = this.#temperature.value;
    return {
      model: Number(this.#select.value),
      effort: this.#effort?.value || null,
      temperature: temperature === "" ? null : Number(temperature),
    };
  }

  #has(model) {
    return [...this.#select.options].some((option) => option.value === String(model));
  }

  /** Show the name of the model, and the settings that it has. */
  #show() {
    const option = this.#select.selectedOptions[0];
    this.querySelector("[data-model-shown]").textContent = option.textContent;
    const efforts = option.dataset.efforts?.split(" ") ?? [];
    if (this.#effort !== null) {
      for (const one of this.#effort.options) one.hidden = one.disabled = one.value !== "" && !efforts.includes(one.value);
      if (!efforts.includes(this.#effort.value)) this.#effort.value = "";
      this.querySelector("[data-effort]").hidden = efforts.length === 0;
    }
    this.querySelector("[data-temperature]").hidden = "fixed" in option.dataset;
    const settings = [...this.#settings.querySelectorAll("label:not([hidden]) select")].filter(({ value }) => value !== "");
    const shown = settings.map(({ selectedOptions }) => selectedOptions[0].textContent);
    this.querySelector("[data-settings-shown]").textContent = shown.map((words) => ` · ${words}`).join("");
    this.querySelector("[data-preferred]").hidden = true;
    this.querySelector("[data-prefer-button]").hidden = false;
  }

  async #toggled() {
    if (!this.#menu.open) {
      this.#message = null;
      this.#compares = false;
      this.#returnFocus();
      return;
    }
    this.#settings.hidden = this.#message !== null;
    this.#list.ariaMultiSelectable = String(this.#compares);
    this.querySelector("[data-prefer-button]").hidden = this.#compares || this.#message !== null;
    this.querySelector("[data-compare-foot]").hidden = !this.#compares;
    this.#field.value = "";
    this.#field.focus();
    if (this.#options.length === 0) await this.#load();
    this.#filter();
    this.#activate(this.#options.find((one) => one.dataset.model === this.model));
    this.#estimate();
  }

  /** Focus what opened the list, unless its user has gone on to something else. */
  #returnFocus() {
    const opener = this.#opener?.isConnected ? this.#opener : this.#menu.querySelector("summary");
    this.#opener = null;
    const focused = document.activeElement;
    if (focused === document.body || this.#menu.contains(focused)) opener.focus();
  }

  async #load() {
    const [models, assistants] = await Promise.all([this.dataset.models, this.dataset.assistants].map(fetchPage));
    this.querySelector("[data-failed]").hidden = models.page !== null;
    if (models.page === null) return;
    const sections = (page, name) => [...(page?.querySelectorAll(`[${name}]`) ?? [])];
    this.#list.replaceChildren(
      ...sections(models.page, "data-provider").map((section) => this.#group(section)),
      ...sections(assistants.page, "data-assistants").map((section) => this.#assistants(section)),
    );
  }

  /** The models of a provider, from its section of the page of all models. */
  #group(section) {
    const { provider } = section.dataset;
    const options = [...section.querySelectorAll("[data-model]")].map((row) => {
      const option = row.querySelector("[data-model-words]").cloneNode(true);
      option.id = `model-${row.dataset.model}`;
      option.dataset.model = row.dataset.model;
      return option;
    });
    return groupOf(provider, options);
  }

  /** Assistants, from a section of their gallery: a new chat begins with the one that is picked. */
  #assistants(section) {
    const options = [...section.querySelectorAll("[data-assistant]")].map((row) => {
      const link = row.querySelector("[data-assistant-words]").cloneNode(true);
      const option = document.createElement("div");
      option.className = "model model-assistant";
      option.id = `assistant-${row.dataset.assistant}`;
      option.dataset.href = link.getAttribute("href");
      option.append(...link.childNodes);
      return option;
    });
    const { conversation } = this.closest("chat-composer").dataset;
    const words = [section.dataset.assistants, conversation ? this.dataset.newChat : ""];
    return groupOf(words.filter(Boolean).join(" · "), options);
  }

  get #options() {
    return [...this.#list.querySelectorAll("[role=option]")];
  }

  get #visible() {
    return this.#options.filter((one) => !one.hidden);
  }

  #filter() {
    const words = this.#field.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const one of this.#options) {
      const isOffered = (this.#message === null && !this.#compares) || one.dataset.model !== undefined;
      one.hidden = !isOffered || !words.every((word) => one.dataset.words.includes(word));
      const isChosen = this.#compares ? this.#box(one)?.checked === true : one.dataset.model === this.model;
      one.ariaSelected = String(isChosen);
    }
    for (const group of this.#list.children) group.hidden = group.querySelector("[role=option]:not([hidden])") === null;
    const visible = this.#visible;
    this.querySelector("[data-none]").hidden = visible.length > 0 || this.#options.length === 0;
    this.#activate(visible[0]);
  }

  #activate(option) {
    for (const one of this.#list.querySelectorAll("[data-active]")) delete one.dataset.active;
    if (option === undefined) {
      this.#field.removeAttribute("aria-activedescendant");
      return;
    }
    option.dataset.active = "";
    this.#field.setAttribute("aria-activedescendant", option.id);
    option.scrollIntoView({ block: "nearest" });
  }

  #key(event) {
    const visible = this.#visible;
    const at = visible.findIndex((one) => "active" in one.dataset);
    const steps = { ArrowDown: at + 1, ArrowUp: at - 1, PageDown: at + 5, PageUp: at - 5 };
    if (event.key === "Enter" && !event.isComposing) {
      event.preventDefault(); // the field is in no form, and must send no message
      this.#pick(visible[at]);
    } else if (event.key in steps) {
      event.preventDefault();
      this.#activate(visible[Math.max(0, Math.min(visible.length - 1, steps[event.key]))]);
    }
  }

  #pick(option) {
    if (!option) return;
    const { model, href } = option.dataset;
    if (this.#compares) {
      this.#toggle(option);
      return;
    }
    if (href !== undefined) {
      this.closest("chat-app").navigation.go(href);
    } else if (this.#message !== null) {
      const detail = { message: this.#message, model: Number(model) };
      this.dispatchEvent(new CustomEvent("chat:other-model", { detail, bubbles: true }));
    } else {
      if (!this.#has(model)) {
        // The list is newer than the page.
        this.#select.add(new Option(option.querySelector(".model-name").textContent, model));
      }
      this.#select.value = model;
      this.#show();
      this.dispatchEvent(new CustomEvent("chat:model", { bubbles: true }));
    }
    this.#menu.open = false;
  }

  /** The check box of a model to compare; null for one that the page does not have. */
  #box(option) {
    return this.#comparing?.querySelector(`input[value="${option.dataset.model}"]`) ?? null;
  }

  /** Choose a model to compare, or leave it out; a further one than MOST_COMPARED is not chosen. */
  #toggle(option) {
    const box = this.#box(option);
    const count = this.#comparing.querySelectorAll("input:checked").length;
    if (box === null || (!box.checked && count >= MOST_COMPARED)) return;
    box.checked = !box.checked;
    option.ariaSelected = String(box.checked);
  }

  /** Show what the text in the composer would cost with each model. */
  async #estimate() {
    const composer = this.closest("chat-composer");
    const answer = await postForm(composer.dataset.estimate, [
      ["csrfmiddlewaretoken", this.#token],
      ["conversation", composer.dataset.conversation],
      ["text", composer.querySelector("textarea").value || "…"],
      ["assistant", composer.assistant ?? ""],
      ["each", "1"],
      ...composer.files.ids.map((id) => ["attachments", id]),
    ]);
    for (const one of answer === null ? [] : this.#list.querySelectorAll("[data-model]")) {
      const { shown = "", problem = "", note = "" } = answer.models[one.dataset.model] ?? {};
      let cost = one.querySelector(".model-cost");
      if (cost === null) {
        cost = document.createElement("span");
        cost.className = "model-cost";
        one.append(cost);
      }
      cost.textContent = problem || [shown, note].filter(Boolean).join(". ");
      cost.toggleAttribute("data-problem", problem !== "");
      cost.hidden = cost.textContent === "";
    }
  }

  async #prefer() {
    const answer = await postForm(this.dataset.prefer, { csrfmiddlewaretoken: this.#token, model: this.model });
    this.querySelector("[data-failed]").hidden = answer !== null;
    if (answer === null) return;
    this.querySelector("[data-preferred]").hidden = false;
    this.querySelector("[data-prefer-button]").hidden = true;
  }

  get #token() {
    return document.querySelector("#composer [name=csrfmiddlewaretoken]").value;
  }
}

/** The options of the list below a name, which may be empty. */
function groupOf(name, options) {
  const group = document.createElement("div");
  group.role = "group";
  if (name) {
    const heading = document.createElement("div");
    heading.className = "model-group-name";
    heading.role = "presentation";
    heading.textContent = name;
    group.append(heading);
    group.ariaLabel = name;
  }
  for (const option of options) {
    option.role = "option";
    option.dataset.words = `${name} ${option.textContent}`.toLowerCase();
  }
  group.append(...options);
  return group;
}
