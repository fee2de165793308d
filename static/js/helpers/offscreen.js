// The browser need not lay out or paint messages outside the window. It may skip one only after it has laid it
// out once: then it remembers the size, and nothing moves when the message comes into view again.

/** Let the browser skip messages, or lists of them, while they are outside the window: from the second frame on. */
export function skipOffscreen(items) {
  afterNextFrame(() => {
    for (const item of items) if (item.dataset.status !== "pending") item.toggleAttribute("data-laid-out", true);
  });
}

/** Lay out skipped messages again, as the window has another width, and they have other sizes. */
export function measureAgain(items) {
  for (const item of items) item.removeAttribute("data-laid-out");
  skipOffscreen(items);
}

function afterNextFrame(action) {
  requestAnimationFrame(() => requestAnimationFrame(action));
}
