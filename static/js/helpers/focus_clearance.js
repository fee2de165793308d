// The bars that stick to an edge of the window. Their heights change with their contents, which a
// scroll-padding of the styles cannot follow.
const TOP = ".topbar, .announcements, .chats-bar";
const BOTTOM = "chat-composer, .composer-closed";
const ABOVE = "dialog, [popover], .menu-panel, .sidebar"; // layers over the bars
const GAP = 8; // pixels, for the ring around the focus

/** Scroll the page when keys move the focus below a bar, until the focused element is visible (WCAG 2.4.11). */
export function keepFocusClear(root) {
  root.addEventListener("focusin", ({ target }) => {
    if (!target.matches(":focus-visible") || target.closest(`${TOP}, ${BOTTOM}, ${ABOVE}`)) return;
    // The browser scrolls after this event, too.
    requestAnimationFrame(() => {
      if (target === document.activeElement) clear(target);
    });
  });
}

function clear(element) {
  const { top, bottom, height } = element.getBoundingClientRect();
  if (height === 0) return;
  const start = Math.max(0, ...boxes(TOP).map((bar) => bar.bottom)) + GAP;
  const end = Math.min(innerHeight, ...boxes(BOTTOM).map((bar) => bar.top)) - GAP;
  let distance = 0;
  if (bottom > end) distance = Math.min(bottom - end, top - start);
  else if (top < start) distance = Math.max(top - start, bottom - end);
  if (Math.abs(distance) >= 1) scrollBy({ top: distance, behavior: "instant" });
}

function boxes(selector) {
  return [...document.querySelectorAll(selector)].map((bar) => bar.getBoundingClientRect()).filter(({ height }) => height > 0);
}
