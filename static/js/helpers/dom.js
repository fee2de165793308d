/** Elements of a piece of HTML that our own server rendered. */
export function fromHTML(html) {
  const template = document.createElement("template");
  template.innerHTML = html;
  return template.content.firstElementChild;
}

/** A copy of what a <template> holds. */
export function fromTemplate(template) {
  return template.content.firstElementChild.cloneNode(true);
}

/** Put the id of a conversation wherever an address in `root` names the one that did not exist. */
export function nameConversation(root, id) {
  for (const attribute of ["action", "formaction", "href", "data-send", "data-active-run"]) {
    for (const element of root.querySelectorAll(`[${attribute}*="${NO_CONVERSATION}"]`)) {
      element.setAttribute(
        attribute,
        element.getAttribute(attribute).replace(NO_CONVERSATION, id),
      );
    }
  }
}

const NO_CONVERSATION = "00000000-0000-0000-0000-000000000000";

/** A device that is touched, with a keyboard that covers half of it when it opens. */
export function isTouch() {
  return matchMedia("(hover: none) and (pointer: coarse)").matches;
}
