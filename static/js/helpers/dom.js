import { NO_ID } from "./ids.js";

/** The element of a piece of HTML that our own server rendered. */
export function fromHTML(html) {
  const template = document.createElement("template");
  template.innerHTML = html;
  return template.content.firstElementChild;
}

/** A copy of what a <template> holds. */
export function fromTemplate(template) {
  return template.content.firstElementChild.cloneNode(true);
}

/** A page of ours as a document; null when it is not to be had. */
export async function fetchPage(url) {
  const text = await fetchText(url, "text/html");
  return text === null ? null : new DOMParser().parseFromString(text, "text/html");
}

/** What an address of ours answers to programs; null when it is not to be had. */
export async function fetchJSON(url) {
  const text = await fetchText(url, "application/json");
  return text === null ? null : JSON.parse(text);
}

/** What an address of ours answers to the fields of a form; null when it is not to be had. */
export async function postForm(url, fields) {
  const text = await fetchText(url, "application/json", { method: "POST", body: new URLSearchParams(fields) });
  return text === null ? null : JSON.parse(text);
}

async function fetchText(url, type, options = {}) {
  try {
    const response = await fetch(url, { ...options, headers: { Accept: type } });
    return response.ok && !response.redirected ? await response.text() : null;
  } catch (error) {
    console.warn("Not reachable", url, error); // it is told on the page, and tried again
    return null;
  }
}

/** Put the id of a conversation into the addresses of a page that was there before it. */
export function nameConversation(root, id) {
  for (const name of ["action", "href", "data-send", "data-active-run"]) {
    for (const element of root.querySelectorAll(`[${name}*="${NO_ID}"]`)) {
      element.setAttribute(name, element.getAttribute(name).replace(NO_ID, id));
    }
  }
}

/** A device that is touched, where a keyboard on the screen covers half of it. */
export function isTouch() {
  return matchMedia("(hover: none) and (pointer: coarse)").matches;
}
