/** A dialog with an image of a message in full size; arrow keys show the other images of the chat. */
export class ChatViewer extends HTMLElement {
  #links = [];
  #at = 0;
  #listening = new AbortController();

  connectedCallback() {
    const { signal } = this.#listening;
    document.addEventListener("click", (event) => this.#clicked(event), { signal });
    this.#dialog.addEventListener("keydown", (event) => this.#key(event));
    this.#dialog.addEventListener("click", (event) => {
      if (event.target === this.#dialog) this.#dialog.close(); // beside the image
    });
    this.#dialog.addEventListener("close", () => this.#links[this.#at]?.focus({ preventScroll: true }));
    for (const button of this.querySelectorAll("[data-step]")) {
      button.addEventListener("click", () => this.#step(Number(button.dataset.step)));
    }
  }

  disconnectedCallback() {
    this.#listening.abort();
  }

  get #dialog() {
    return this.querySelector("dialog");
  }

  #clicked(event) {
    const link = event.target.closest("a[data-image]");
    if (link === null || event.ctrlKey || event.metaKey || event.shiftKey || event.button !== 0) return;
    event.preventDefault();
    this.#links = [...document.querySelectorAll("a[data-image]")];
    this.#at = this.#links.indexOf(link);
    this.#show();
    this.#dialog.showModal();
  }

  #key(event) {
    const isRtl = getComputedStyle(this).direction === "rtl";
    const step = { ArrowLeft: isRtl ? 1 : -1, ArrowRight: isRtl ? -1 : 1 }[event.key];
    if (step !== undefined) this.#step(step);
  }

  #step(by) {
    const at = this.#at + by;
    if (at < 0 || at >= this.#links.length) return;
    this.#at = at;
    this.#show();
  }

  #show() {
    const link = this.#links[this.#at];
    const name = link.querySelector("img").alt;
    const image = this.querySelector("[data-shown]");
    image.src = link.href;
    image.alt = name;
    this.querySelector("[data-name]").textContent = name;
    this.querySelector("[data-download]").href = `${link.href}?download`;
    this.querySelector("[data-steps]").hidden = this.#links.length < 2;
    this.querySelector("[data-place]").textContent = `${this.#at + 1} / ${this.#links.length}`;
    const [previous, next] = this.querySelectorAll("[data-step]");
    previous.disabled = this.#at === 0;
    next.disabled = this.#at === this.#links.length - 1;
  }
}
