/** Show a theme and a text size, as the server renders them into a page (templates/base.html). */
export function showAppearance({ theme, text_size: textSize }) {
  const page = document.documentElement;
  page.dataset.theme = theme;
  page.dataset.textSize = textSize;
  for (const meta of document.querySelectorAll("meta[name=theme-color]")) {
    if (theme === "system") meta.media = `(prefers-color-scheme: ${meta.dataset.scheme})`;
    else meta.media = theme === meta.dataset.scheme ? "all" : "not all";
  }
}
