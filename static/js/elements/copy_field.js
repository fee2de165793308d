import { copy } from "../helpers/clipboard.js";

/** A field whose text its button copies. */
export class CopyField extends HTMLElement {
  connectedCallback() {
    const field = this.querySelector("input");
    field.addEventListener("focus", () => field.select());
    this.querySelector("button").addEventListener("click", (event) => this.#copy(field, event.currentTarget));
  }

  async #copy(field, button) {
    const said = this.querySelector("[role=status]");
    try {
      await copy(field.value);
      button.textContent = said.textContent = this.dataset.copied;
    } catch {
      field.focus();
      said.textContent = this.dataset.refused;
    }
  }
}
