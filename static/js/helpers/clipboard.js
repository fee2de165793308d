/**
 * Copy the text that `read()` resolves to; rejects when the browser blocks it. The clipboard item
 * gets the promise, since a browser may no longer allow copying when the text has arrived.
 */
export async function copy(read) {
  if (navigator.clipboard?.write && window.ClipboardItem) {
    const blob = async () => new Blob([await read()], { type: "text/plain" });
    await navigator.clipboard.write([new ClipboardItem({ "text/plain": blob() })]);
    return;
  }
  copyBySelection(await read());
}

// Pages without TLS have no `navigator.clipboard`.
function copyBySelection(text) {
  const field = document.createElement("textarea");
  field.className = "visually-hidden";
  field.value = text;
  document.body.append(field);
  field.select();
  const copied = document.execCommand("copy");
  field.remove();
  if (!copied) throw new Error("The browser blocked copying.");
}
