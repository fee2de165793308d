/**
 * Put the text that `read()` brings into the clipboard; rejects when the browser does not let us.
 * The promise goes into the clipboard item, since a browser may forget the click while we wait.
 */
export async function copy(read) {
  if (navigator.clipboard?.write && window.ClipboardItem) {
    const blob = async () => new Blob([await read()], { type: "text/plain" });
    await navigator.clipboard.write([new ClipboardItem({ "text/plain": blob() })]);
    return;
  }
  copyBySelection(await read());
}

// Pages without TLS have no clipboard but this one.
function copyBySelection(text) {
  const field = document.createElement("textarea");
  field.className = "visually-hidden";
  field.value = text;
  document.body.append(field);
  field.select();
  const copied = document.execCommand("copy");
  field.remove();
  if (!copied) throw new Error("The browser did not allow it.");
}
