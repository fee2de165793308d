import { fromHTML, postForm } from "../helpers/dom.js";

const ACTIONS = ["good", "bad", "unrate"];

/** Rates replies without a load of the page, and follows the ratings of the user's other tabs. */
export class ReplyRating extends HTMLElement {
  #app = null;
  #submitted = (event) => this.#rate(event);
  #received = ({ detail }) => this.#show(detail.message, detail.rating, detail.html);

  connectedCallback() {
    this.#app = this.closest("chat-app");
    this.#app.addEventListener("submit", this.#submitted);
    this.#app.addEventListener("feedback.changed", this.#received);
  }

  disconnectedCallback() {
    this.#app.removeEventListener("submit", this.#submitted);
    this.#app.removeEventListener("feedback.changed", this.#received);
  }

  async #rate(event) {
    const button = event.submitter;
    if (event.target.id !== "actions" || !ACTIONS.includes(button?.name)) return;
    event.preventDefault();
    const { name, value } = button;
    const token = event.target.elements.csrfmiddlewaretoken.value;
    const answer = await postForm(event.target.action, { csrfmiddlewaretoken: token, [name]: value });
    if (answer === null) {
      const detail = document.querySelector("[data-toast]").dataset.failed;
      this.dispatchEvent(new CustomEvent("chat:error", { detail, bubbles: true }));
      return;
    }
    this.#show(value, answer.rating, answer.html);
    const link = document.querySelector(`#m-${value} .rating [data-dialog]`);
    if (name === "bad" && link !== null) this.#app.querySelector("page-dialog").open(link.href);
  }

  #show(message, rating, html) {
    const shown = document.querySelector(`#m-${message} .rating`);
    if (shown === null || shown.dataset.rating === rating) return;
    const focused = [...shown.children].indexOf(document.activeElement);
    const next = fromHTML(html);
    shown.replaceWith(next);
    if (focused >= 0) (next.children[focused] ?? next.firstElementChild).focus({ preventScroll: true });
  }
}
