// Long messages of the user show their beginning only, until the reader asks for the rest.

import { fromTemplate } from "./dom.js";

const MAX_CHARACTERS = 1_500;
const MAX_LINES = 20;

/** Fold a text if it is long. Its length decides, not its height, which would take a layout of the page. */
export function foldLong(text) {
  const { textContent, nextElementSibling } = text;
  const isLong = textContent.length > MAX_CHARACTERS || textContent.split("\n").length > MAX_LINES;
  if (!isLong || nextElementSibling?.matches("[data-fold]")) return;
  text.classList.add("folded");
  text.after(fromTemplate(document.getElementById("own-fold")));
}

/** Show all of a folded text, or its beginning again. */
export function toggleFold(button) {
  const text = button.previousElementSibling;
  const isFolded = text.classList.toggle("folded");
  button.setAttribute("aria-expanded", String(!isFolded));
  const shown = button.textContent;
  button.textContent = button.dataset.less;
  button.dataset.less = shown;
  if (isFolded) text.scrollIntoView({ block: "nearest" });
}
