const SLIP = 3; // pixels that a resting finger moves

const UP = new Set(["ArrowUp", "PageUp", "Home"]);
const DOWN = new Set(["ArrowDown", "PageDown", "End"]);

/**
 * Call `up` or `down` when the reader begins to move the page by wheel, finger or key: before the page
 * has moved, so that nothing moves it back meanwhile. An AbortSignal ends it.
 */
export function listenForScrolling({ up, down }, signal) {
  const report = (event, distance) => {
    if (distance === 0 || scrollsInside(event.target, distance)) return;
    if (distance < 0) up();
    else down();
  };

  const wheel = (event) => {
    if (!event.ctrlKey) report(event, event.deltaY); // with Control it zooms
  };

  let finger = 0;
  const touchStart = (event) => {
    finger = event.touches[0].clientY;
  };
  const touchMove = (event) => {
    if (event.touches.length > 1) return; // two fingers zoom
    const distance = finger - event.touches[0].clientY; // the page moves against the finger
    if (Math.abs(distance) <= SLIP) return;
    finger = event.touches[0].clientY;
    report(event, distance);
  };

  addEventListener("wheel", wheel, { passive: true, signal });
  addEventListener("touchstart", touchStart, { passive: true, signal });
  addEventListener("touchmove", touchMove, { passive: true, signal });
  addEventListener("keydown", (event) => report(event, keyDistance(event)), { signal });
}

function keyDistance(event) {
  if (event.defaultPrevented || event.target.closest("input, textarea, select")) return 0;
  if (UP.has(event.key)) return -1;
  if (DOWN.has(event.key)) return 1;
  if (event.key !== " " || event.target.closest("a, button, summary")) return 0;
  return event.shiftKey ? -1 : 1;
}

/** Whether an element inside the page takes the movement. */
function scrollsInside(element, distance) {
  for (let at = element; at instanceof Element && at !== document.body; at = at.parentElement) {
    const { overflowY, overscrollBehaviorY } = getComputedStyle(at);
    const room = at.scrollHeight - at.clientHeight;
    if (room <= 1 || !["auto", "scroll"].includes(overflowY)) continue;
    if (overscrollBehaviorY !== "auto") return true;
    if (distance < 0 ? at.scrollTop > 0 : at.scrollTop < room) return true;
  }
  return false;
}
