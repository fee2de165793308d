import { gettext } from "../helpers/gettext.js";
import { createPasskey, hasPasskeys, usePasskey } from "../helpers/passkeys.js";

/**
 * A form that is submitted with the answer of a passkey. `data-options` has the server's options, or `data-source`
 * the address that returns them; `data-create` makes a passkey instead of asking for one.
 */
export class PasskeyForm extends HTMLElement {
  connectedCallback() {
    const form = this.querySelector("form");
    if (!hasPasskeys()) {
      this.#refuse(gettext("This browser has no passkeys on this site."));
      form.querySelector("button").disabled = true;
      // Beside another way to sign in, a button that does nothing is no help.
      if (this.dataset.source) this.hidden = true;
      return;
    }
    // The name is a suggestion: the first key that is typed replaces it.
    const name = form.elements.namedItem("name");
    name?.addEventListener("focus", () => name.select());
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#ask(form);
    });
  }

  async #ask(form) {
    const button = form.querySelector("button");
    button.disabled = true;
    this.#refuse("");
    try {
      const options = await this.#options();
      const credential = await ("create" in this.dataset ? createPasskey(options) : usePasskey(options));
      form.elements.credential.value = JSON.stringify(credential);
      form.submit();
    } catch (error) {
      button.disabled = false;
      this.#refuse(problem(error));
    }
  }

  async #options() {
    if (this.dataset.options) return JSON.parse(this.dataset.options);
    const response = await fetch(this.dataset.source, { headers: { Accept: "application/json" } });
    if (!response.ok) throw new TypeError(`options: ${response.status}`);
    return (await response.json()).request_options;
  }

  #refuse(sentence) {
    const place = this.querySelector("[role=alert]");
    place.textContent = sentence;
    place.hidden = sentence === "";
  }
}

function problem(error) {
  if (error instanceof DOMException && error.name === "InvalidStateError") {
    return gettext("This device already has a passkey of your account.");
  }
  if (error instanceof DOMException) return gettext("The passkey was not used. Try again.");
  return gettext("The site could not be reached. Check your connection and try again.");
}
