import { APPLY, END, GAP, RESTART, RunFollower } from "../models/run_follower.js";

const CHECK_EVERY = 4_000; // milliseconds: for messages that its owner sends, and for the end of the share

/** A chat that another user shares: shows a reply while it is written, and new messages; it writes nothing. */
export class ChatShared extends HTMLElement {
  #follower = null;
  #text = "";
  #blocks = [];
  #shown = 0; // UTF-16 code units of the text that the blocks show
  #timer = null;
  #listening = new AbortController();

  connectedCallback() {
    const { signal } = this.#listening;
    this.#app.connection.addEventListener("open", () => this.#resume(), { signal });
    this.#timer = setInterval(() => this.#check(), CHECK_EVERY);
    if (this.dataset.run) this.#follow();
  }

  disconnectedCallback() {
    clearInterval(this.#timer);
    this.#listening.abort();
  }

  get #app() {
    return this.closest("chat-app");
  }

  #follow() {
    this.#follower = new RunFollower(this.dataset.run);
    this.#resume();
  }

  #resume() {
    if (this.#follower === null) return;
    this.#app.connection.send({ type: "resume", run: this.#follower.run, after: this.#follower.last });
  }

  receive(event) {
    if (event.type === "share.ended" && event.conversation === this.dataset.conversation) {
      this.#leave();
      return;
    }
    switch (this.#follower?.receive(event)) {
      case GAP:
        this.#resume();
        return;
      case END:
        this.#follower = null;
        this.#reload();
        return;
      case RESTART:
        this.#restart(event.text);
        return;
      case APPLY:
        this.#apply(event);
    }
  }

  #restart(text) {
    this.#text = text ?? "";
    this.#blocks = [];
    this.#shown = 0;
    this.#show();
  }

  #apply(event) {
    if (event.type === "text.delta") this.#text += event.text;
    else if (event.type === "reply.replaced") {
      this.#restart(event.text);
      return;
    } else if (event.type === "reply.blocks") {
      this.#blocks.splice(event.first, event.blocks.length, ...event.blocks);
      this.#shown = event.end;
    } else return;
    this.#show();
  }

  /** Show the blocks that have ended, as the server rendered them, and the text after them. */
  #show() {
    const stream = this.querySelector("[data-stream]");
    if (stream === null) return;
    stream.querySelector("[data-blocks]").innerHTML = this.#blocks.join("");
    stream.querySelector("[data-tail]").textContent = this.#text.slice(this.#shown);
    const waiting = this.querySelector("[data-waiting]");
    if (waiting !== null) waiting.hidden = this.#text !== "";
  }

  async #check() {
    if (document.hidden) return;
    let response, data;
    try {
      response = await fetch(this.dataset.activeRun, { headers: { Accept: "application/json" } });
      data = await response.json();
    } catch (error) {
      console.warn("The shared chat could not be checked", error); // the next turn tries again
      return;
    }
    if (!this.isConnected) return;
    if (response.status === 404) {
      this.#leave();
      return;
    }
    if (!response.ok || this.dataset.past !== undefined) return;
    const run = data.runs[0]?.id ?? "";
    if (data.leaf !== this.dataset.leaf || run !== (this.dataset.run ?? "")) this.#reload();
  }

  /** Open the list that says that the share has ended; the page that it was is not kept in the history. */
  #leave() {
    location.replace(this.dataset.ended);
  }

  /** Fetch the page anew, and keep the place of its reader. */
  #reload() {
    this.#app.navigation.reload();
  }
}
