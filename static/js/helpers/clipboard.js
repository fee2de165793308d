/**
 * Copy a text, or the text that a promise resolves to; rejects when the browser blocks it. Without TLS
 * there is no `navigator.clipboard`, and some browsers copy only during the click: such a page needs
 * the text itself, not a promise.
 */
export async function copy(text) {
  if (navigator.clipboard?.write && window.ClipboardItem) {
    // The clipboard item gets the promise: a browser may no longer allow copying when the text arrives.
    const blob = async () => new Blob([await text], { type: "text/plain" });
    await navigator.clipboard.write([new ClipboardItem({ "text/plain": blob() })]);
    return;
  }
  copyBySelection(typeof text === "string" ? text : await text);
}

/** Whether `copy` needs the text itself. */
export function needsTextAtHand() {
  return !navigator.clipboard?.write;
}

function copyBySelection(text) {
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
  const isCopied = document.execCommand("copy");
  field.remove();
  focused?.focus({ preventScroll: true });
  selection.removeAllRanges();
  for (const range of ranges) selection.addRange(range);
  if (!isCopied) throw new Error("The browser blocked copying.");
}
