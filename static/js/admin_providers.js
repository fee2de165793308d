// Staff pages of a provider: choose many models at once, and show that a request is on its way.

import { gettext, ngettext } from "./helpers/gettext.js";

const list = document.querySelector("form[data-models]");
const bar = list?.querySelector(".provider-choose");
if (bar) {
  const boxes = [...list.querySelectorAll("[name$='-chosen']")];
  const chosen = list.querySelector("[data-chosen]");
  const count = () => {
    const number = boxes.filter((box) => box.checked).length;
    chosen.textContent = number
      ? ngettext("{count} chosen on this page", "{count} chosen on this page", number)
      : gettext("None chosen");
  };
  bar.addEventListener("click", (event) => {
    const choice = event.target.dataset.choose;
    if (choice) {
      for (const box of boxes) box.checked = choice === "all";
      count();
    }
  });
  list.addEventListener("change", count);
  bar.hidden = boxes.length === 0;
  count();
}

// The provider may take seconds. A second press would ask it again.
for (const form of document.querySelectorAll("form[data-progress]")) {
  const button = form.querySelector("[type=submit]");
  const text = "value" in button && button.value ? "value" : "textContent";
  const words = button[text];
  form.addEventListener("submit", (event) => {
    if (form.ariaBusy === "true") event.preventDefault();
    form.ariaBusy = "true";
    button[text] = form.dataset.progress;
  });
  // The browser may show the page again as it was left.
  addEventListener("pageshow", () => {
    form.ariaBusy = "false";
    button[text] = words;
  });
}
