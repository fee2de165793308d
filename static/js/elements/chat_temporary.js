/** The mark of a temporary chat: reports to the server that its page was closed, which then purges the chat. */
export class ChatTemporary extends HTMLElement {
  #listening = new AbortController();
  #isKept = false;

  connectedCallback() {
    const { signal } = this.#listening;
    this.#keep.addEventListener("submit", () => {
      this.#isKept = true;
    });
    addEventListener("pagehide", () => this.#report(), { signal });
    // The page that comes back was reported as closed: the server makes it anew.
    addEventListener("pageshow", (event) => event.persisted && location.reload(), { signal });
  }

  disconnectedCallback() {
    this.#listening.abort();
    this.#report();
  }

  /** The first message was sent: from now on there is a chat to keep. */
  begun() {
    this.#keep.hidden = false;
  }

  get #keep() {
    return this.querySelector("[data-keep]");
  }

  #report() {
    if (this.#isKept || this.#keep.hidden) return;
    const form = this.querySelector("[data-close]");
    navigator.sendBeacon(form.action, new URLSearchParams(new FormData(form)));
  }
}
