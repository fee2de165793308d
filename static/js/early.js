// A classic script, loaded before the page's body: until the modules have loaded, Enter submits the
// composer's form, and the text of a submitted form is kept as a draft, in case that it does not arrive.
{
  const isReady = () => customElements.get("chat-composer") !== undefined;

  document.addEventListener("keydown", (event) => {
    const field = event.target;
    if (isReady() || event.key !== "Enter" || !field.matches("chat-composer textarea")) return;
    if (event.isComposing || event.keyCode === 229) return; // Enter accepts a word of an input method
    const isTouch = matchMedia("(hover: none) and (pointer: coarse)").matches;
    if (!(event.ctrlKey || event.metaKey) && (event.shiftKey || isTouch)) return;
    event.preventDefault();
    if (field.value.trim()) field.form.requestSubmit();
  });

  document.addEventListener("submit", (event) => {
    const composer = event.target.closest("chat-composer");
    if (isReady() || composer === null) return;
    // As js/models/draft.js does.
    const { conversation, edit } = composer.dataset;
    const name = `parley:${composer.closest("chat-app").dataset.user}`;
    const key = `draft:${edit ? `edit:${edit}` : conversation || "new"}`;
    if (sessionStorage.getItem(`${name}:${key}`) !== null) return; // of an earlier text
    sessionStorage.setItem(`${name}:${key}`, event.target.elements.text.value);
    sessionStorage.setItem(`${name}:submitted`, key);
  });
}
