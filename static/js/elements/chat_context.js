import { fetchJSON, fromTemplate } from "../helpers/dom.js";
import { debounce } from "../helpers/timing.js";

const SETTLED = 800; // milliseconds without another change of the messages
const CERTAIN = 0.5; // part of the room below which the sizes of new messages need no exact count
const BYTES_PER_TOKEN = 3; // as chat/llm/tokens.py estimates it

/**
 * How full the context window of the chat is, and the line above the oldest message that is still sent. The server
 * renders both with the page; here they follow replies, branches and the choice of a model.
 */
export class ChatContext extends HTMLElement {
  #soon = debounce(() => this.#update(), SETTLED);
  #changes = new MutationObserver(() => this.#soon());
  #model;
  #shown; // ids of the messages that were counted

  connectedCallback() {
    this.#model = this.#models?.model;
    this.#shown = this.#ids;
    const composer = this.closest("chat-composer");
    this.#changes.observe(this.#list, { childList: true });
    this.#changes.observe(composer, { attributeFilter: ["data-busy"] }); // a reply ends within its element
    composer.addEventListener("chat:model", () => this.#soon());
  }

  disconnectedCallback() {
    this.#changes.disconnect();
    this.#soon.cancel();
  }

  get #models() {
    return this.closest("chat-composer").models;
  }

  get #transcript() {
    return document.querySelector("chat-transcript");
  }

  get #list() {
    return this.#transcript.querySelector(".messages");
  }

  get #ids() {
    return Array.from(this.#list.children, ({ id }) => id);
  }

  async #update() {
    const { conversation, cursors } = this.#transcript;
    const model = this.#models?.model;
    if (!conversation || cursors.length > 0) return; // repeated when the reply has ended
    if (model === this.#model && this.#isSmall()) return;
    this.#model = model;
    this.#shown = this.#ids;
    const answer = await fetchJSON(`${this.dataset.url}?${new URLSearchParams(model ? { model } : {})}`);
    if (answer === null || !this.isConnected) return;
    this.dataset.tokens = answer.tokens;
    this.dataset.room = answer.room;
    const template = document.createElement("template");
    template.innerHTML = answer.html;
    this.replaceChildren(template.content);
    this.#draw(answer.first);
  }

  /** Whether the messages that have come since the last count leave the window far from full. */
  #isSmall() {
    const ids = this.#ids;
    const isLonger = this.#shown.every((id, index) => ids[index] === id);
    if (!isLonger || this.childElementCount > 0) return false;
    const added = Array.from(this.#list.children).slice(this.#shown.length);
    const bytes = new TextEncoder().encode(added.map(({ textContent }) => textContent).join("")).length;
    const tokens = Number(this.dataset.tokens) + Math.ceil(bytes / BYTES_PER_TOKEN);
    if (tokens > CERTAIN * Number(this.dataset.room)) return false;
    this.dataset.tokens = tokens;
    this.#shown = ids;
    return true;
  }

  /** Draw the line above the message `first`, or none. */
  #draw(first) {
    for (const line of document.querySelectorAll(".messages [data-context-line]")) line.remove();
    const item = first && document.getElementById(`m-${first}`);
    item?.prepend(fromTemplate(document.getElementById("context-line")));
  }
}
