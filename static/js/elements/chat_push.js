import { sendForm } from "../helpers/dom.js";

/** The button that turns notifications on for this browser. */
export class ChatPush extends HTMLElement {
  connectedCallback() {
    const isListed = document.querySelector("[data-this-device]") !== null;
    this.hidden = isListed && this.#isGranted;
    if (!this.#isSupported) this.#show("unsupported");
    else if (Notification.permission === "denied") this.#show("denied");
    this.#button.addEventListener("click", () => this.#turnOn());
  }

  get #button() {
    return this.querySelector("[data-turn-on]");
  }

  get #isSupported() {
    return "PushManager" in window && "serviceWorker" in navigator && "Notification" in window;
  }

  get #isGranted() {
    return this.#isSupported && Notification.permission === "granted";
  }

  async #turnOn() {
    this.#button.disabled = true;
    try {
      const permission = await Notification.requestPermission();
      if (permission !== "granted") {
        if (permission === "denied") this.#show("denied");
        return;
      }
      await this.#add(await this.#subscribe());
    } catch (error) {
      console.warn("no subscription for notifications:", error);
      this.#show("failed", { button: true });
    } finally {
      this.#button.disabled = false;
    }
  }

  /** Subscribe at the browser's push service with the site's present key. */
  async #subscribe() {
    const { pushManager } = await navigator.serviceWorker.ready;
    const old = await pushManager.getSubscription();
    await old?.unsubscribe();
    return pushManager.subscribe({ userVisibleOnly: true, applicationServerKey: this.dataset.key });
  }

  async #add(subscription) {
    const { endpoint, keys } = subscription.toJSON();
    const fields = Object.entries({
      endpoint,
      p256dh: keys.p256dh,
      auth: keys.auth,
      csrfmiddlewaretoken: this.querySelector("[name=csrfmiddlewaretoken]").value,
    });
    const { isDone, message } = await sendForm(this.dataset.add, fields);
    if (isDone) location.reload();
    else this.#say(message);
  }

  #show(state, { button = false } = {}) {
    this.#button.hidden = !button;
    this.#say(this.querySelector(`[data-words=${state}]`).content.textContent);
  }

  #say(words) {
    const line = this.querySelector("[data-state]");
    line.textContent = words;
    line.hidden = false;
  }
}
