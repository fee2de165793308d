import { fetchPage } from "../helpers/dom.js";

const PAUSE = 10_000; // milliseconds between two looks at a job, in case an event was lost

/** The import or the export of chats: its progress comes as events, and its end by another look at the page. */
export class ChatTransfer extends HTMLElement {
  #timer = null;
  #app = null;
  #isLooking = false;
  #received = ({ detail }) => this.#show(detail);

  connectedCallback() {
    this.#app = this.closest("chat-app");
    this.#app?.addEventListener("transfer.updated", this.#received);
    this.querySelector("[data-max-bytes]")?.addEventListener("change", checkSize);
    if (this.hasAttribute("data-active")) this.#timer = setTimeout(() => this.#look(), PAUSE);
  }

  disconnectedCallback() {
    clearTimeout(this.#timer);
    this.#app?.removeEventListener("transfer.updated", this.#received);
  }

  #show(event) {
    if (event.kind !== this.dataset.kind) return;
    const bar = this.querySelector("progress");
    if (event.status === "running" && bar !== null && event.percent > 0) {
      bar.value = event.percent;
      bar.textContent = `${event.percent} %`;
    } else this.#look();
  }

  async #look() {
    if (this.#isLooking) return;
    this.#isLooking = true;
    clearTimeout(this.#timer);
    const { page } = document.hidden ? { page: null } : await fetchPage(location.pathname);
    this.#isLooking = false;
    if (!this.isConnected) return;
    const part = page?.querySelector("chat-transfer");
    if (part) this.replaceWith(part);
    else this.#timer = setTimeout(() => this.#look(), PAUSE);
  }
}

/** Refuse a file that the server would refuse only after its upload. */
function checkSize({ target }) {
  const isTooLarge = target.files[0]?.size > Number(target.dataset.maxBytes);
  target.setCustomValidity(isTooLarge ? target.dataset.tooLarge : "");
  target.reportValidity();
}

/** Reports the end of an export on any page but its own. */
export class ChatReady extends HTMLElement {
  connectedCallback() {
    this.closest("chat-app").addEventListener("transfer.updated", ({ detail }) => {
      const isOnItsPage = document.querySelector('chat-transfer[data-kind="export"]') !== null;
      if (detail.kind === "export" && detail.status === "done" && !isOnItsPage) this.hidden = false;
    });
    this.addEventListener("click", (event) => {
      if (event.target.closest("a, [data-close]")) this.hidden = true;
    });
  }
}
