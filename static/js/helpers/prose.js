// The parts of formatted text that need the script: they are added to blocks of the server's HTML.

import { fromTemplate } from "./dom.js";

/** Add buttons to the code in these elements, and mark links whose text is their address. */
export function prepareProse(elements) {
  for (const element of elements) {
    for (const link of all(element, "a[href]")) link.toggleAttribute("data-bare", isAddress(link));
    for (const code of all(element, ".code")) addButtons(code);
  }
}

function addButtons(code) {
  if (code.querySelector(":scope > .action") !== null) return;
  code.querySelector("pre").before(fromTemplate(document.getElementById("copy-code")));
}

/** The elements that match in an element, and itself. */
function all(element, selector) {
  const found = [...element.querySelectorAll(selector)];
  return element.matches(selector) ? [element, ...found] : found;
}

/** Whether the text of a link is its address. */
function isAddress(link) {
  const href = link.getAttribute("href") ?? "";
  return href.replace(/^\w+:(\/\/)?/, "").startsWith(link.textContent.trim().replace(/^\w+:(\/\/)?|…$/g, ""));
}
