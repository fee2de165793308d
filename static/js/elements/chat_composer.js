import { isTouch, postForm } from "../helpers/dom.js";
import { NO_ID, newClientId } from "../helpers/ids.js";
import { storageOf } from "../helpers/storage.js";
import { countDown, debounce } from "../helpers/timing.js";
import { again, remaining } from "../helpers/words.js";
import { Draft } from "../models/draft.js";

const STILL_WRITING = "A reply is still being written. Wait for it, or stop it first.";
const OFFLINE = "You are offline. Your text is kept here: send it when you are back.";

/**
 * Where one writes. What is typed is never lost: it is kept in the tab until the server has it.
 *
 * Fires "chat:send" ({text, clientId, edit}). Who takes it calls preventDefault; otherwise the form
 * goes to the server by itself.
 */
export class ChatComposer extends HTMLElement {
  #draft;
  #countdown = null;
  #saveSoon = debounce(() => this.#save(), 300);
  #estimateSoon = debounce(() => this.#estimate(), 400);

  connectedCallback() {
    const storage = storageOf(this.closest("chat-app").dataset.user);
    if (location.hash === "#end") {
      // The server sends us here when it has taken a form.
      Draft.arrived(storage);
      history.replaceState(history.state, "", location.pathname + location.search);
    }
    this.#draft = new Draft(storage, this.#page);
    // What the server put into the field is at best what is in the draft already.
    if (this.#draft.text !== "") this.#field.value = this.#draft.text;
    this.#field.addEventListener("input", () => this.#typed());
    this.#field.addEventListener("keydown", (event) => this.#key(event));
    this.#form.addEventListener("submit", (event) => this.#submit(event));
    this.querySelector("[data-cancel]")?.addEventListener("click", () => this.#forget());
    addEventListener("pagehide", () => this.#saveSoon.flush());
    this.#fit();
    this.#estimateSoon();
    // Not away from where somebody is already; on a phone a keyboard would cover the page.
    if (!isTouch() && document.activeElement === document.body) this.#focusAtEnd();
  }

  get isBusy() {
    return this.hasAttribute("data-busy");
  }

  /** A reply is being written: Stop stands in the place of Send. */
  set run(id) {
    const isLosingFocus = (id === null ? this.#stop : this.#send) === document.activeElement;
    this.toggleAttribute("data-busy", id !== null);
    this.#stop.hidden = id === null;
    this.#stop.disabled = false;
    this.#send.hidden = id !== null;
    if (id !== null) {
      this.#stop.dataset.stop = id;
      this.#stop.setAttribute("formaction", this.dataset.stopUrl.replace(NO_ID, id));
    }
    if (isLosingFocus && !isTouch()) this.#field.focus();
  }

  /** The chat has got its address: forms and drafts go there from now on. */
  moved(id) {
    this.#forget();
    this.dataset.conversation = id;
    this.#draft.page = id;
    this.#save();
    this.#form.action = this.dataset.send;
  }

  /** What was to be sent is on its way: make room for the next. */
  clear() {
    this.#field.value = "";
    this.#forget();
    this.#form.elements.client_id.value = newClientId();
    this.tell("");
    this.#fit();
    this.#showCost("");
    if (this.dataset.edit) this.#stopEditing();
  }

  /** Put back what could not be sent, before whatever was typed meanwhile. */
  restore(text) {
    const typed = this.#field.value;
    this.#field.value = typed.trim() ? `${text}\n\n${typed}` : text;
    this.#save();
    this.#fit();
    this.#focusAtEnd();
  }

  /** Send the form without the script's help. */
  post(text, clientId) {
    this.#field.value = text;
    this.#form.elements.client_id.value = clientId;
    this.#save();
    this.#draft.submitted();
    this.#form.submit();
  }

  /**
   * Say what went wrong; nothing with an empty text. `lacksCredits` offers to buy some, `retryAfter`
   * (seconds) to send the text again by then.
   */
  tell(message, { lacksCredits = false, retryAfter = null } = {}) {
    this.querySelector("[data-error-text]").textContent = message;
    if (message !== "") this.#showCost(""); // one sentence at a time
    const buy = this.querySelector("[data-buy]");
    buy.hidden = !lacksCredits;
    buy.search = new URLSearchParams({ next: location.pathname });
    this.#offerAgain(retryAfter);
    this.querySelector("[data-error]").hidden = message === "";
  }

  set showsJump(visible) {
    this.querySelector("[data-to-end]").hidden = !visible;
  }

  // --- Internal

  #offerAgain(seconds) {
    const button = this.querySelector("[data-again]");
    this.#countdown?.cancel();
    button.hidden = seconds === null;
    if (seconds === null) return;
    this.#countdown = countDown(seconds, (left) => {
      button.disabled = left > 0;
      button.textContent = again(left);
    });
  }

  get #form() {
    return this.querySelector("form");
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

  get #page() {
    const { conversation, edit } = this.dataset;
    return edit ? `edit:${edit}` : conversation || "new";
  }

  #typed() {
    this.tell("");
    this.#fit();
    this.#saveSoon();
    this.#estimateSoon();
  }

  /** Ask what the text would cost. A newer text makes the answer worthless. */
  async #estimate() {
    const text = this.#field.value;
    if (!text.trim()) {
      this.#showCost("");
      return;
    }
    const found = await postForm(this.dataset.estimate, {
      csrfmiddlewaretoken: this.#form.elements.csrfmiddlewaretoken.value,
      conversation: this.dataset.conversation,
      text,
    });
    const isTold = !this.querySelector("[data-error]").hidden;
    if (found === null || isTold || text !== this.#field.value) return;
    this.#showCost(found.problem || [found.shown, found.note].filter(Boolean).join(". "));
  }

  #showCost(words) {
    const cost = this.querySelector("[data-cost]");
    cost.textContent = words;
    cost.hidden = words === "";
  }

  #key(event) {
    if (event.key !== "Enter" || event.shiftKey || isTouch()) return;
    // While a word is composed (Japanese, Chinese, Korean), Enter chooses it. Safari ends the
    // composing before it tells of the key, and marks that with the code 229.
    if (event.isComposing || event.keyCode === 229) return;
    event.preventDefault();
    this.#form.requestSubmit();
  }

  #submit(event) {
    const text = this.#field.value;
    const wrong = this.#wrong(text);
    if (wrong !== null) {
      event.preventDefault();
      this.tell(wrong);
      this.#field.focus();
      return;
    }
    const detail = {
      text,
      clientId: this.#form.elements.client_id.value,
      edit: this.dataset.edit,
    };
    const send = new CustomEvent("chat:send", { detail, bubbles: true, cancelable: true });
    if (!this.dispatchEvent(send)) {
      event.preventDefault();
      return;
    }
    this.#save();
    this.#draft.submitted();
  }

  /** Why a text cannot be sent now; empty for one that says nothing, null when it can. */
  #wrong(text) {
    if (!text.trim()) return "";
    if (this.isBusy) return STILL_WRITING;
    if (!navigator.onLine) return OFFLINE;
    const over = length(text) - Number(this.dataset.most);
    if (over > 0) return `The message is ${over.toLocaleString("en")} characters too long. Shorten it or send it in parts.`;
    return null;
  }

  #save() {
    this.#draft.text = this.#field.value;
  }

  #forget() {
    this.#saveSoon.cancel();
    this.#draft.text = "";
  }

  #fit() {
    const field = this.#field;
    if (!CSS.supports("field-sizing", "content")) {
      field.style.height = "auto";
      field.style.height = `${field.scrollHeight}px`;
    }
    const count = this.querySelector("[data-count]");
    const most = Number(this.dataset.most);
    const words = remaining(length(field.value), most);
    count.hidden = words === "";
    count.textContent = words;
    count.toggleAttribute("data-over", length(field.value) > most);
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
    history.replaceState(history.state, "", location.pathname);
  }
}

// The server counts characters; JavaScript counts some of them (emoji) twice.
function length(text) {
  return text.length < 10_000 ? text.length : Array.from(text).length;
}
