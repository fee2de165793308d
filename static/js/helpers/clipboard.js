/**
 * Copy a text, or the text that a promise resolves to; rejects when the browser blocks it. Without TLS
 * there is no `navigator.clipboard`, and some browsers copy only during the click: such a page needs
 * the text itself, not a promise. Programs that take formatted text get `html`.
 */
export async function copy(text, html = null) {
  if (navigator.clipboard?.write && window.ClipboardItem) {
    // The clipboard item gets the promise: a browser may no longer allow copying when the text arrives.
    const blob = async () => new Blob([await text], { type: "text/plain" });
    const rich = html === null ? {} : { "text/html": new Blob([html], { type: "text/html" }) };
    await navigator.clipboard.write([new ClipboardItem({ "text/plain": blob(), ...rich })]);
    return;
  }
  copyBySelection(typeof text === "string" ? text : await text, html);
}

/** Whether `copy` needs the text itself. */
export function needsTextAtHand() {
  return !navigator.clipboard?.write;
}

function copyBySelection(text, html) {
  const focused = document.activeElement;
  const selection = document.getSelection();
  const ranges = Array.from({ length: selection.rangeCount }, (_, index) => selection.getRangeAt(index));
  const field = document.createElement("textarea");
  field.className = "copied-text";
  field.readOnly = true; // no keyboard opens
  field.value = text;
  document.body.append(field);
  field.focus({ preventScroll: true });
  field.setSelectionRange(0, text.length);
  const addHTML = (event) => {
    event.clipboardData.setData("text/plain", text);
    if (html !== null) event.clipboardData.setData("text/html", html);
    event.preventDefault();
  };
  document.addEventListener("copy", addHTML, { once: true });
  const isCopied = document.execCommand("copy");
  document.removeEventListener("copy", addHTML);
  field.remove();
  focused?.focus({ preventScroll: true });
  selection.removeAllRanges();
  for (const range of ranges) selection.addRange(range);
  if (!isCopied) throw new Error("The browser blocked copying.");
}
