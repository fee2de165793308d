// The parts of formatted text that need the script: they are added to blocks of the server's HTML.

import { fromTemplate } from "./dom.js";

/** Add buttons to the code and the tables in these elements, and mark links whose text is their address. */
export function prepareProse(elements) {
  for (const element of elements) {
    for (const link of all(element, "a[href]")) link.toggleAttribute("data-bare", isAddress(link));
    for (const code of all(element, ".code")) addActions(code, "pre", "code-actions");
    for (const table of all(element, "div.table")) addActions(table, "table", "table-actions");
  }
}

/** The text of code, without the last line break, at which a terminal would run it. */
export function textOfCode(element) {
  return element.closest(".code").querySelector("pre").textContent.replace(/\n$/, "");
}

/** Break long lines of code, or let the code scroll again. */
export function toggleWrap(button) {
  const isWrapped = button.closest(".code").classList.toggle("wrapped");
  button.setAttribute("aria-pressed", String(isWrapped));
}

/** The texts of the cells of a table, row by row. Formulas are in LaTeX. */
export function rowsOf(element) {
  const rows = [...element.closest(".table").querySelectorAll("tr")];
  return rows.map((row) => [...row.children].map((cell) => textOf(cell)));
}

function textOf(cell) {
  const copy = cell.cloneNode(true);
  for (const math of copy.querySelectorAll("math")) math.replaceWith(math.getAttribute("alttext") ?? math.textContent);
  for (const lineBreak of copy.querySelectorAll("br")) lineBreak.replaceWith(" ");
  return copy.textContent.replace(/\s+/g, " ").trim();
}

function addActions(element, before, template) {
  if (element.querySelector(`:scope > .${template}`) !== null) return;
  element.querySelector(`:scope > ${before}`).before(fromTemplate(document.getElementById(template)));
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
