// Delays. The source of randomness is an argument, so that tests can fix it.

const MIN_DELAY = 1_000; // milliseconds
const MAX_DELAY = 30_000;

/**
 * Milliseconds before attempt number `attempt` (from 0): exponential backoff from 1 to 30 s, of which
 * half is random (jitter).
 */
export function backoff(attempt, random = Math.random) {
  const full = Math.min(MAX_DELAY, MIN_DELAY * 2 ** attempt);
  return full / 2 + (full / 2) * random();
}

/** Call `show` with the remaining whole seconds, now and every second; the last call has 0. */
export function countDown(seconds, show) {
  const until = Date.now() + seconds * 1_000;
  let timer = null;
  const step = () => {
    const left = Math.max(0, Math.ceil((until - Date.now()) / 1_000));
    if (left > 0) timer = setTimeout(step, 1_000);
    show(left);
  };
  step();
  return { cancel: () => clearTimeout(timer) };
}

/** Call `action` when there was no call for `delay` ms. `flush()` runs a pending action now. */
export function debounce(action, delay) {
  let timer = null;
  const run = () => {
    timer = null;
    action();
  };
  const debounced = () => {
    clearTimeout(timer);
    timer = setTimeout(run, delay);
  };
  debounced.flush = () => {
    if (timer === null) return;
    clearTimeout(timer);
    run();
  };
  debounced.cancel = () => {
    clearTimeout(timer);
    timer = null;
  };
  return debounced;
}
