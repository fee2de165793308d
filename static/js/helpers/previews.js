// Previews of HTML and SVG, and images of other sites, in a frame that is isolated from the page: it runs no
// script, and requests nothing but the one image that the reader has asked for.

import { gettext } from "./gettext.js";

let frames = 0;

/** Whether code can be shown as a document. */
export function canPreview(code) {
  const language = /\blanguage-(\S+)/.exec(code.querySelector("code").className)?.[1].toLowerCase();
  if (["html", "svg", "xhtml"].includes(language)) return true;
  return language === "xml" && /^\s*(<\?xml[^>]*>\s*)?<svg\b/.test(code.textContent);
}

/** The host of an image that can be shown after a click; null without one. */
export function hostOfImage(link) {
  const { protocol, host } = new URL(link.href);
  return protocol === "https:" && link.href.length <= 2_000 ? host : null;
}

/** Show or remove the preview below a block of code. */
export function togglePreview(button, url, text) {
  const figure = button.closest(".code");
  const shown = figure.querySelector(":scope > .preview");
  button.setAttribute("aria-pressed", String(shown === null));
  if (shown !== null) shown.remove();
  else figure.append(frameOf(url, { code: text }, gettext("Preview")));
}

/** Show an image in place of the button that offers it. */
export function showImage(button, url) {
  const link = button.previousElementSibling;
  button.replaceWith(frameOf(url, { image: link.href }, link.textContent));
}

function frameOf(url, fields, title) {
  const frame = document.createElement("iframe");
  frame.className = "preview";
  frame.name = `preview-${++frames}`;
  frame.title = title;
  frame.setAttribute("sandbox", "");
  frame.referrerPolicy = "no-referrer";
  // The frame receives the answer to a form, which needs both in the page.
  requestAnimationFrame(() => {
    const form = document.createElement("form");
    form.method = "post";
    form.action = url;
    form.target = frame.name;
    form.hidden = true;
    const csrfmiddlewaretoken = document.querySelector("[name=csrfmiddlewaretoken]").value;
    for (const [name, value] of Object.entries({ csrfmiddlewaretoken, ...fields })) {
      const field = document.createElement("textarea"); // an input would drop line breaks
      field.name = name;
      field.value = value;
      form.append(field);
    }
    document.body.append(form);
    form.submit();
    form.remove();
  });
  return frame;
}
