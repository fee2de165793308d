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
  let response;
  try {
    response = await fetch(url, { headers: { Accept: "text/html" } });
  } catch {
    return null; // the network is away; who asked will ask again
  }
  if (!response.ok || response.redirected) return null;
  return new DOMParser().parseFromString(await response.text(), "text/html");
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
