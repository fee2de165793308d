import { NO_ID } from "./ids.js";

/** The element of a piece of HTML. Trusts it: only for HTML that the server rendered. */
export function fromHTML(html) {
  const template = document.createElement("template");
  template.innerHTML = html;
  return template.content.firstElementChild;
}

/** A copy of the element in a <template>. */
export function fromTemplate(template) {
  return template.content.firstElementChild.cloneNode(true);
}

/**
 * Fetch a page of this site as a document: {page, isMissing}. `page` is null if the request fails;
 * `isMissing`: the server answered that there is no such page.
 */
export async function fetchPage(url) {
  const { text, status } = await fetchText(url, "text/html");
  const page = text === null ? null : new DOMParser().parseFromString(text, "text/html");
  return { page, isMissing: status === 404 };
}

/** Fetch JSON from this site; null if the request fails. */
export async function fetchJSON(url) {
  const { text } = await fetchText(url, "application/json");
  return text === null ? null : JSON.parse(text);
}

/** Post the fields of a form to this site, and return the JSON answer; null if the request fails. */
export async function postForm(url, fields) {
  const { text } = await fetchText(url, "application/json", { method: "POST", body: new URLSearchParams(fields) });
  return text === null ? null : JSON.parse(text);
}

/**
 * Send the fields of a form to this site: {isDone, message, undo}. `message` is a sentence for the user, perhaps
 * empty; after a failure without an answer it is that of the page.
 */
export async function sendForm(url, fields) {
  try {
    const body = new URLSearchParams([...fields]);
    const response = await fetch(url, { method: "POST", body, headers: { Accept: "application/json" } });
    const { message = "", undo = "" } = await response.json();
    return { isDone: response.ok, message, undo };
  } catch (error) {
    console.warn("Request failed", url, error);
    return { isDone: false, message: document.querySelector("[data-toast]").dataset.failed, undo: "" };
  }
}

async function fetchText(url, type, options = {}) {
  try {
    const response = await fetch(url, { ...options, headers: { Accept: type, "X-Sync": "1" } });
    const isWanted = response.ok && !response.redirected;
    return { text: isWanted ? await response.text() : null, status: response.status };
  } catch (error) {
    console.warn("Request failed", url, error); // the caller shows it or tries again
    return { text: null, status: 0 };
  }
}

/** Put the id of a new conversation into the addresses of a page that was rendered without it. */
export function nameConversation(root, id) {
  for (const name of ["action", "formaction", "href", "data-send", "data-active-run", "data-url"]) {
    for (const element of root.querySelectorAll(`[${name}*="${NO_ID}"]`)) {
      element.setAttribute(name, element.getAttribute(name).replace(NO_ID, id));
    }
  }
}

/** Remove the lists of chats that have become empty, with their headings. */
export function removeEmptyLists(root) {
  for (const list of root.querySelectorAll("h2 + ul")) {
    if (list.childElementCount > 0) continue;
    list.previousElementSibling.remove();
    list.remove();
  }
}

/** Whether this is a touch device, whose on-screen keyboard covers half of the page. */
export function isTouch() {
  return matchMedia("(hover: none) and (pointer: coarse)").matches;
}

/** Whether text in an element is selected. */
export function isSelected(element) {
  const selection = document.getSelection();
  return !selection.isCollapsed && selection.containsNode(element, true);
}

/** Have the browser save a text as a file. */
export function saveFile(name, text) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "text/plain;charset=utf-8" }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
