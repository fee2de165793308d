// Switches between the pages of chat-app without loading them whole: title, top bar and main are fetched
// and replaced, the sidebar and the socket stay. Whenever that is not possible, the browser navigates.

// Addresses whose pages have the same sidebar.
const PAGES =
  /^\/(c\/[0-9a-f-]{36}\/|chats\/(archive\/)?|search\/|projects\/([0-9a-f-]{36}\/)?|settings\/((data|notifications)\/)?|billing\/((history|limits|packages|usage)\/)?|assistants\/([0-9]+\/|new\/)?)?$/;
const PARTS = [".topbar", "main"];
const SLOW = 200; // milliseconds, after which the page shows that another one is on its way
const MAX_PLACES = 200; // pages whose scroll place is remembered

/**
 * Events: "leave" (the parts of the present page are about to be removed), "arrive" (those of another page
 * are shown; detail.place: as `readPlace` returned it when the page was left, or undefined).
 */
export class Navigation extends EventTarget {
  #app;
  #readPlace;
  #places = new Map();
  #shown = addressOf(location);
  #request = null;

  /** `readPlace()` returns the scroll place of the page that is shown. */
  constructor(app, readPlace) {
    super();
    this.#app = app;
    this.#readPlace = readPlace;
  }

  start() {
    this.#app.addEventListener("click", (event) => this.#clicked(event));
    addEventListener("popstate", () => this.#traversed());
  }

  /** The page has got another address without being replaced. */
  moved() {
    this.#shown = addressOf(location);
  }

  /** Show the page with this address: a new entry of the history. */
  go(href) {
    const url = new URL(href, location.href);
    if (PAGES.test(url.pathname) && url.origin === location.origin) this.#load(url);
    else location.assign(url);
  }

  /** Fetch the page that is shown anew. */
  reload() {
    this.#load(new URL(location.href));
  }

  // --- Internal

  #clicked(event) {
    const isPlain = !(event.ctrlKey || event.metaKey || event.shiftKey || event.altKey);
    if (event.defaultPrevented || event.button !== 0 || !isPlain) return;
    const link = event.target.closest("a[href]");
    if (link === null || link.target || link.hasAttribute("download")) return;
    const url = new URL(link.href);
    if (url.origin !== location.origin || !PAGES.test(url.pathname)) return;
    if (url.hash && addressOf(url) === addressOf(location)) return; // the browser scrolls
    event.preventDefault();
    this.#load(url);
  }

  #traversed() {
    if (addressOf(location) !== this.#shown) this.#load(new URL(location.href));
    else this.#request?.abort(); // back on the page that is still shown
  }

  async #load(url) {
    this.#request?.abort();
    const request = new AbortController();
    this.#request = request;
    const wait = setTimeout(() => this.#app.toggleAttribute("data-loading", true), SLOW);
    try {
      const page = await this.#fetch(url, request.signal);
      if (request.signal.aborted) return;
      if (page === null) navigate(url);
      else this.#show(page, url);
    } finally {
      clearTimeout(wait);
      if (this.#request === request) this.#app.removeAttribute("data-loading");
    }
  }

  /** The page as a document; null if it cannot be shown here. */
  async #fetch(url, signal) {
    try {
      const response = await fetch(url, { signal, headers: { Accept: "text/html", "X-Swap": "1" } });
      if (!response.ok || response.redirected) return null;
      const page = new DOMParser().parseFromString(await response.text(), "text/html");
      const { user, assets } = page.querySelector("chat-app")?.dataset ?? {};
      const isSame = user === this.#app.dataset.user && assets === this.#app.dataset.assets;
      if (!isSame || PARTS.some((part) => page.querySelector(part) === null)) return null;
      await loadStyles(page, signal);
      return page;
    } catch (error) {
      if (!signal.aborted) console.warn("The browser loads the page", url.href, error);
      return null;
    }
  }

  #show(page, url) {
    this.#rememberPlace();
    if (url.href !== location.href) history.pushState(null, "", url);
    this.#shown = addressOf(url);
    history.scrollRestoration = "manual";
    this.dispatchEvent(new Event("leave"));
    document.activeElement?.blur(); // as after a load: the composer of the next page takes the focus
    document.title = page.title;
    for (const part of PARTS) this.#app.querySelector(part).replaceWith(page.querySelector(part));
    document.scrollingElement.scrollTop = 0;
    const place = url.hash ? undefined : this.#places.get(this.#shown);
    this.dispatchEvent(new CustomEvent("arrive", { detail: { place } }));
    if (url.hash) document.getElementById(url.hash.slice(1))?.scrollIntoView();
    const main = this.#app.querySelector("main");
    if (document.activeElement === document.body) main.focus({ preventScroll: true });
  }

  #rememberPlace() {
    this.#places.delete(this.#shown); // the newest is the last
    this.#places.set(this.#shown, this.#readPlace());
    if (this.#places.size > MAX_PLACES) this.#places.delete(this.#places.keys().next().value);
  }
}

function addressOf({ pathname, search }) {
  return pathname + search;
}

function navigate(url) {
  if (url.href === location.href) location.reload();
  else location.assign(url);
}

/** Add the style sheets that only the fetched page has, in its order, and wait until they are loaded. */
async function loadStyles(page, signal) {
  let last = null;
  const loading = [];
  for (const link of page.head.querySelectorAll("link[rel=stylesheet]")) {
    const href = link.getAttribute("href");
    const present = document.head.querySelector(`link[rel=stylesheet][href="${CSS.escape(href)}"]`);
    if (present !== null) {
      last = present;
      continue;
    }
    const added = document.importNode(link);
    loading.push(
      new Promise((resolve, reject) => {
        added.addEventListener("load", resolve);
        added.addEventListener("error", () => reject(new Error(`${href} was not loaded`)));
        signal.addEventListener("abort", resolve);
      }),
    );
    last.after(added);
    last = added;
  }
  await Promise.all(loading);
}
