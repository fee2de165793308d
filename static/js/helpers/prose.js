// The parts of formatted text that need the script: they are added to blocks of the server's HTML.

import { fromTemplate } from "./dom.js";
import { gettext } from "./gettext.js";
import { canPreview, hostOfImage } from "./previews.js";

/** Add buttons to the code and the tables in these elements, and mark links whose text is their address. */
export function prepareProse(elements) {
  for (const element of elements) {
    for (const link of all(element, "a[href]")) link.toggleAttribute("data-bare", isAddress(link));
    for (const code of all(element, ".code")) addCodeActions(code);
    for (const table of all(element, "div.table")) addActions(table, "table", "table-actions");
    for (const image of all(element, "a.image")) offerImage(image);
    for (const mark of all(element, ".note-ref, .note-label")) makeButton(mark);
  }
}

/** Go from the mark of a footnote to the note, or back from the note to its first mark. */
export function followNote(button) {
  const isMark = button.parentElement.matches(".note-ref");
  const marks = [...button.closest(".prose, .stream").querySelectorAll(isMark ? ".note-label" : ".note-ref")];
  const found = marks.find((one) => one.textContent === button.textContent);
  if (found === undefined) return;
  found.scrollIntoView({ block: "center" });
  found.querySelector("button").focus({ preventScroll: true });
}

/** The text of code, without the last line break, at which a terminal would run it. */
export function textOfCode(element) {
  return element.closest(".code").querySelector("pre").textContent.replace(/\n$/, "");
}

/** The words of a formatted reply, without code and the parts that the script adds. */
export function speakable(prose) {
  return [...prose.children]
    .filter((block) => !block.matches(".code, .note, .stream-tail"))
    .map((block) => plainCopy(block).textContent)
    .join("\n");
}

/** A copy of formatted elements as the server made them: without buttons, frames and their rows. */
export function plainCopy(element) {
  const copy = element.cloneNode(true);
  for (const mark of copy.querySelectorAll(".note-ref, .note-label")) mark.replaceChildren(mark.textContent);
  for (const part of copy.querySelectorAll("button, iframe, .code-actions, .table-actions, .stream-tail")) part.remove();
  return copy;
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

function addCodeActions(code) {
  addActions(code, "pre", "code-actions");
  if (canPreview(code)) code.querySelector("[data-preview]").hidden = false;
}

/** Offer an image of another site: nothing is requested from there before the click. */
function offerImage(link) {
  const host = hostOfImage(link);
  if (host === null || link.nextElementSibling?.matches("[data-show-image]")) return;
  const button = document.createElement("button");
  button.type = "button";
  button.className = "action show-image";
  button.dataset.showImage = "";
  button.textContent = gettext("Show image from {host}", { host });
  link.after(button);
}

function makeButton(mark) {
  if (mark.querySelector("button") !== null) return;
  const button = document.createElement("button");
  button.type = "button";
  button.dataset.note = "";
  button.textContent = mark.textContent;
  const values = { label: mark.textContent };
  button.title = mark.matches(".note-ref") ? gettext("Footnote {label}", values) : gettext("Back to the text of footnote {label}", values);
  button.setAttribute("aria-label", button.title);
  mark.replaceChildren(button);
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
