import { isTouch, postForm } from "../helpers/dom.js";
import { gettext, ngettext } from "../helpers/gettext.js";
import { NO_ID, newClientId } from "../helpers/ids.js";
import { storageOf } from "../helpers/storage.js";
import { countDown, debounce } from "../helpers/timing.js";
import { remaining, retryLabel } from "../helpers/words.js";
import { Draft, pageOf } from "../models/draft.js";
import { DraftSync } from "../models/draft_sync.js";

const STILL_WRITING = gettext("A reply is still being written. Wait for it, or stop it first.");
const OFFLINE = gettext("You are offline. Your text is saved here. Send it when you are back online.");

/**
 * The message field. Typed text is never lost: it stays in the tab's storage until the server has it.
 *
 * Fires "chat:send" ({text, clientId, edit, models}; `models` are compared, or undefined). A listener that sends the text calls preventDefault;
 * otherwise the browser submits the form.
 */
export class ChatComposer extends HTMLElement {
  #draft;
  #sync; // of the draft with the user's other devices
  #unanswered = null; // a text that may have been stored after all, and its client_id
  #countdown = null;
  #listening = new AbortController();
  #saveSoon = debounce(() => this.#save(), 300);
  #estimateSoon = debounce(() => this.#estimate(), 400);

  connectedCallback() {
    const app = this.closest("chat-app");
    const storage = storageOf(app.dataset.user);
    if (location.hash === "#end") {
      // The server redirects here when it has accepted a form.
      Draft.arrived(storage);
      history.replaceState(history.state, "", location.pathname + location.search);
    }
    this.#draft = new Draft(storage, this.#page);
    const shared = this.dataset.edit || this.temporary ? null : this.#page;
    // A text that is too long for the server stays in this tab, as the newer one, until it is shorter.
    const isStorable = ({ text }) => length(text) <= Number(this.dataset.maxCharacters);
    this.#sync = new DraftSync(storage, shared, (frame) => isStorable(frame) && (app.connection?.send(frame) ?? false));
    this.#restoreDraft();
    this.#field.addEventListener("paste", (event) => {
      if (this.files.paste(event.clipboardData)) event.preventDefault();
    });
    this.addEventListener("chat:files", () => this.#filesChanged());
    this.addEventListener("chat:files-error", ({ detail }) => this.showError(detail));
    this.addEventListener("chat:put-back", ({ detail }) => this.restore(detail));
    this.#field.addEventListener("input", () => this.#typed());
    this.#field.addEventListener("keydown", (event) => this.#key(event));
    this.#form.addEventListener("submit", (event) => this.#submit(event));
    this.addEventListener("chat:model", () => this.#modelChosen());
    this.querySelector("[data-choose]").addEventListener("click", (event) => {
      event.stopPropagation(); // or the menu would be closed as by a click outside
      this.models?.open();
    });
    this.querySelector("[data-cancel]")?.addEventListener("click", () => this.#discardDraft());
    const { signal } = this.#listening;
    addEventListener("keydown", (event) => this.#escape(event), { signal });
    addEventListener("pagehide", () => this.saveDraft(), { signal });
    this.#fit();
    this.#showSend();
    this.#estimateSoon();
    // Never take the focus from another element; on a phone the keyboard would cover the page.
    if (!isTouch() && document.activeElement === document.body) this.#focusAtEnd();
  }

  disconnectedCallback() {
    this.saveDraft();
    this.#estimateSoon.cancel();
    this.#countdown?.cancel();
    this.#listening.abort();
  }

  /** The files of the message. */
  get files() {
    return this.querySelector("chat-files");
  }

  /** The choice of models; null where no model is offered. */
  get models() {
    return this.querySelector("chat-models");
  }

  /** The id of the assistant that a new chat names; undefined for the default one, and in a chat that has begun. */
  get assistant() {
    const id = this.#form.elements.assistant?.value;
    return id && !this.dataset.conversation ? Number(id) : undefined;
  }

  /** Whether a new chat is temporary; undefined for an ordinary one, and in a chat that has begun. */
  get temporary() {
    return this.#form.elements.temporary && !this.dataset.conversation ? true : undefined;
  }

  /** The message that is sent when the present reply has ended. */
  get next() {
    return this.querySelector("chat-next");
  }

  /** Take the state of a fetched page. */
  sync(page) {
    this.next.sync(page);
    this.models?.sync(page);
    const fresh = page.querySelector("chat-composer");
    if (fresh !== null) this.receiveDraft({ ...this.#shownChat, text: fresh.querySelector("textarea").defaultValue });
  }

  /** Store the draft now, in this tab and on the server. */
  saveDraft() {
    this.#saveSoon.flush();
    this.#sync.flush();
  }

  /** Show a draft that another device has stored, unless one is being typed here. */
  receiveDraft(event) {
    const text = this.#sync.received(event);
    if (text === null) return;
    this.#field.value = text;
    this.#draft.text = text;
    this.#fit();
    this.#showSend();
    this.#estimateSoon();
  }

  get isBusy() {
    return this.hasAttribute("data-busy");
  }

  /** The id of the run in progress, or null. While there is one, Stop replaces Send of an empty field. */
  set run(id) {
    const isLosingFocus = (id === null ? this.#stop : this.#send) === document.activeElement;
    this.toggleAttribute("data-busy", id !== null);
    this.#stop.hidden = id === null;
    this.#stop.disabled = false;
    this.#showSend();
    if (id !== null) {
      this.#stop.dataset.stop = id;
      this.#stop.setAttribute("formaction", this.dataset.stopUrl.replace(NO_ID, id));
    }
    if (isLosingFocus && !isTouch()) this.#field.focus();
  }

  /** Point the form and the draft of a new chat to the chat just created. */
  moved(id) {
    this.#discardDraft();
    this.dataset.conversation = id;
    this.#draft.page = id;
    this.files.page = id;
    this.#sync.moved(id);
    this.#save();
    this.#form.action = this.dataset.send;
  }

  /** Empty the field for the next message. */
  clear() {
    this.#field.value = "";
    this.files.clear();
    this.#discardDraft();
    this.#unanswered = null;
    this.#form.elements.client_id.value = newClientId();
    this.showError("");
    this.#fit();
    this.#showSend();
    this.#showCost("");
    if (this.dataset.edit) this.#stopEditing();
  }

  /**
   * Remember a text that was refused. A refusal may be wrong: the server lost its database while it
   * stored the text. So the same text is sent again with the same client_id, which has one effect.
   */
  refused({ text, client_id: clientId }) {
    this.#unanswered = { text, clientId };
    this.#form.elements.client_id.value = newClientId();
  }

  /** Put back a text that could not be sent, before any text typed meanwhile, and the files with these ids. */
  restore(text, files = []) {
    if (files.length > 0) this.files.restore(files);
    const typed = this.#field.value;
    this.#field.value = typed.trim() ? `${text}\n\n${typed}` : text;
    this.#save();
    this.#fit();
    this.#showSend();
    this.#focusAtEnd();
  }

  /** Put back the next message. The server has its text as a draft, which must follow what becomes of it here. */
  takeBack(text, files) {
    this.restore(text, files);
    this.saveDraft();
  }

  /** Focus the field, except on a touch device, whose keyboard would cover the page. */
  focusField() {
    if (!isTouch()) this.#focusAtEnd();
  }

  /** Remove the typed text, and return it; empty for an edit that has changed nothing. */
  removeDraft() {
    const text = this.dataset.edit && this.#field.value === this.#field.defaultValue ? "" : this.#field.value;
    this.#field.value = "";
    this.#discardDraft();
    return text;
  }

  /** Let the browser submit the form. */
  post(text, clientId, files = []) {
    this.#field.value = text;
    this.files.restore(files);
    this.#form.elements.client_id.value = clientId;
    this.#save();
    this.#draft.submitted();
    this.#form.submit();
  }

  /**
   * Show an error, or hide it with an empty text. `lacksCredits` offers to buy credits,
   * `lacksModel` to choose a model, `retryAfter`
   * (seconds) offers to send the text again after that time.
   */
  showError(message, { lacksCredits = false, lacksModel = false, retryAfter = null } = {}) {
    this.querySelector("[data-error-text]").textContent = message;
    if (message !== "") this.#showCost(""); // one sentence at a time
    const buy = this.querySelector("[data-buy]");
    buy.hidden = !lacksCredits;
    buy.search = new URLSearchParams({ next: location.pathname });
    this.querySelector("[data-choose]").hidden = !lacksModel || !this.models?.hasOthers;
    this.#offerRetry(retryAfter);
    this.querySelector("[data-error]").hidden = message === "";
  }

  set showsJump(visible) {
    this.querySelector("[data-to-end]").hidden = !visible;
  }

  // --- Internal

  /** Show the draft, and after it the text that was typed before this script was ready. */
  #restoreDraft() {
    const local = this.#draft.text;
    const field = this.#field;
    const typed = field.value !== field.defaultValue && field.value !== local ? field.value : "";
    const { draftAge } = this.dataset;
    const draft = this.#sync.load(local, field.defaultValue, draftAge === undefined ? null : Number(draftAge));
    this.#draft.text = draft === field.defaultValue && this.dataset.edit ? "" : draft;
    const isInField = draft === "" || draft === field.defaultValue;
    if (typed.trim() && !isInField) this.restore(draft);
    else if (typed.trim()) this.#save();
    else field.value = draft;
  }

  #offerRetry(seconds) {
    const button = this.querySelector("[data-retry]");
    this.#countdown?.cancel();
    button.hidden = seconds === null;
    if (seconds === null) return;
    this.#countdown = countDown(seconds, (left) => {
      button.disabled = left > 0;
      button.textContent = retryLabel(left);
    });
  }

  get #form() {
    return this.querySelector("form.composer");
  }

  get #field() {
    return this.querySelector("textarea");
  }

  get #send() {
    return this.querySelector("[data-send-button]");
  }

  get #stop() {
    return this.querySelector("[data-stop]");
  }

  /** The conversation of an event about this page. */
  get #shownChat() {
    return this.dataset.conversation ? { conversation: this.dataset.conversation } : {};
  }

  get #page() {
    return pageOf(this.dataset);
  }

  #modelChosen() {
    this.showError("");
    this.#estimate();
    this.focusField();
  }

  /** While a reply is being generated, Send is offered for a text alone. */
  #showSend() {
    const send = this.#send;
    send.hidden = this.isBusy && (this.#field.value.trim() === "" || this.dataset.edit !== undefined);
    send.dataset.label ??= send.getAttribute("aria-label");
    const label = this.isBusy ? send.dataset.nextLabel : send.dataset.label;
    send.setAttribute("aria-label", label);
    send.title = this.isBusy ? label : "";
  }

  #typed() {
    const field = this.#field;
    const storable = withoutUnstorable(field.value);
    if (storable !== field.value) field.value = storable; // else the caret would move
    this.showError("");
    if (field.value === "/") this.querySelector("chat-prompts").open("/");
    this.#fit();
    this.#showSend();
    this.#saveSoon();
    this.#estimateSoon();
  }

  /** The network is back: the reason not to send has ended. */
  online() {
    if (this.querySelector("[data-error-text]").textContent === OFFLINE) this.showError("");
  }

  #filesChanged() {
    const { uploading, failed } = this.files.dataset;
    const shown = this.querySelector("[data-error-text]").textContent;
    if (this.files.problem === null && [uploading, failed].includes(shown)) this.showError("");
    this.#estimateSoon();
  }

  /** Request the cost of the text. The answer is dropped when the text has changed meanwhile. */
  async #estimate() {
    const text = this.#field.value;
    const files = this.files.ids;
    if (!text.trim() && files.length === 0) {
      this.#showCost("");
      return;
    }
    const estimate = await postForm(this.dataset.estimate, [
      ["csrfmiddlewaretoken", this.#form.elements.csrfmiddlewaretoken.value],
      ["conversation", this.dataset.conversation],
      ["text", text],
      ["model", this.models?.model ?? ""],
      ["assistant", this.assistant ?? ""],
      ...files.map((id) => ["attachments", id]),
    ]);
    const hasError = !this.querySelector("[data-error]").hidden;
    if (estimate === null || hasError || text !== this.#field.value || `${files}` !== `${this.files.ids}`) return;
    this.#showCost(estimate.problem || [estimate.shown, estimate.note].filter(Boolean).join(". "));
  }

  #showCost(sentence) {
    const cost = this.querySelector("[data-cost]");
    cost.textContent = sentence;
    cost.hidden = sentence === "";
  }

  /** Enter sends, on a touch device only with Control or Command. Arrow up in an empty field edits. */
  #key(event) {
    if (event.key === "ArrowUp" && !isComposition(event)) this.#editLast(event);
    if (event.key !== "Enter" || isComposition(event)) return;
    const isCommand = event.ctrlKey || event.metaKey;
    if (!isCommand && (event.shiftKey || isTouch())) return;
    event.preventDefault();
    this.#form.requestSubmit();
  }

  /** Edit the next message, or else the last own one. */
  #editLast(event) {
    const isPlain = !(event.ctrlKey || event.metaKey || event.shiftKey || event.altKey);
    if (!isPlain || this.#field.value !== "" || this.dataset.edit) return;
    if (this.next.edit()) event.preventDefault();
    else if (!this.isBusy) {
      const last = [...document.querySelectorAll(".messages .action-edit")].at(-1);
      if (last === undefined) return;
      event.preventDefault();
      last.click();
    }
  }

  /** Escape cancels an edit, unless it closes a menu or the sidebar. */
  #escape(event) {
    if (event.key !== "Escape" || event.defaultPrevented || isComposition(event)) return;
    if (document.querySelector(":popover-open, dialog[open]") === null) this.querySelector("[data-cancel]")?.click();
  }

  #submit(event) {
    const text = this.#field.value;
    const compares = event.submitter?.dataset.compare;
    const models = compares && this.#comparedModels;
    const problem = this.#problem(text) ?? (models && (models.length < 2 || models.length > 3) ? compares : null);
    if (problem !== null) {
      event.preventDefault();
      this.showError(problem);
      this.#field.focus();
      return;
    }
    if (this.#unanswered?.text === text) {
      this.#form.elements.client_id.value = this.#unanswered.clientId;
    }
    const detail = {
      text,
      clientId: this.#form.elements.client_id.value,
      edit: this.dataset.edit,
      models,
      choice: this.models?.changes ?? {},
      draft: this.#sync.isStored,
      assistant: this.assistant,
      files: this.files.ids,
    };
    const send = new CustomEvent("chat:send", { detail, bubbles: true, cancelable: true });
    if (!this.dispatchEvent(send)) {
      event.preventDefault();
      if (models) this.models.compared();
      return;
    }
    this.#save();
    this.#form.elements.draft.value = this.#sync.isStored ? "True" : "False";
    this.#draft.submitted();
  }

  get #comparedModels() {
    const chosen = this.querySelectorAll("[data-compare-menu] input:checked");
    return Array.from(chosen, (input) => Number(input.value));
  }

  /** Why a text cannot be sent now: a sentence, "" for a blank text, null if it can be sent. */
  #problem(text) {
    if (!text.trim() && this.files.isEmpty) return "";
    if (this.files.problem !== null) return this.files.problem;
    if (this.isBusy && this.dataset.edit) return STILL_WRITING;
    if (!navigator.onLine) return OFFLINE;
    const over = length(text) - Number(this.dataset.maxCharacters);
    if (over > 0) {
      return ngettext(
        "The message is {count} character too long. Shorten it or send it in parts.",
        "The message is {count} characters too long. Shorten it or send it in parts.",
        over,
      );
    }
    return null;
  }

  #save() {
    this.#draft.text = this.#field.value;
    this.#sync.edited(this.#field.value);
  }

  #discardDraft() {
    this.#saveSoon.cancel();
    this.#draft.text = "";
    this.#sync.clear();
  }

  #fit() {
    const field = this.#field;
    if (!CSS.supports("field-sizing", "content")) {
      field.style.height = "auto";
      field.style.height = `${field.scrollHeight}px`;
    }
    const count = this.querySelector("[data-count]");
    const maxCharacters = Number(this.dataset.maxCharacters);
    const left = remaining(length(field.value), maxCharacters);
    count.hidden = left === "";
    count.textContent = left;
    count.toggleAttribute("data-over", length(field.value) > maxCharacters);
  }

  #focusAtEnd() {
    this.#field.focus({ preventScroll: true });
    this.#field.setSelectionRange(this.#field.value.length, this.#field.value.length);
  }

  #stopEditing() {
    delete this.dataset.edit;
    this.querySelector("[data-editing]").remove();
    this.#form.action = this.dataset.send;
    this.#draft.page = this.#page;
    this.files.page = this.#page;
    history.replaceState(history.state, "", location.pathname);
  }
}

/**
 * Whether a key belongs to an input method (Japanese, Chinese, Korean), in which Enter accepts a word.
 * Safari ends the composition before it fires the key event, and marks that event with the code 229.
 */
function isComposition(event) {
  return event.isComposing || event.keyCode === 229;
}

/** A text as the server can store it: pasted texts may have NUL characters or halves of emoji, which are invisible. */
function withoutUnstorable(text) {
  const rest = text.replaceAll("\0", "");
  return rest.toWellFormed?.() ?? rest;
}

// The server counts characters; JavaScript counts some (emoji) twice.
function length(text) {
  return text.length < 10_000 ? text.length : Array.from(text).length;
}
