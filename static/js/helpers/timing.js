// Delays between attempts. Pure, with the chance passed in, so that tests can say what it is.

const LEAST = 1_000; // milliseconds
const MOST = 30_000;

/** Milliseconds to wait before attempt number `attempt` (from 0): 1 to 30 s, spread by half. */
export function backoff(attempt, random = Math.random) {
  const full = Math.min(MOST, LEAST * 2 ** attempt);
  return full / 2 + (full / 2) * random();
}

/** Call `tell` with the whole seconds that are left, now and every second, at last with 0. */
export function countDown(seconds, tell) {
  const until = Date.now() + seconds * 1_000;
  let timer = null;
  const step = () => {
    const left = Math.max(0, Math.ceil((until - Date.now()) / 1_000));
    if (left > 0) timer = setTimeout(step, 1_000);
    tell(left);
  };
  step();
  return { cancel: () => clearTimeout(timer) };
}

/** Call `action` once things have been quiet for `delay` ms. `flush()` calls it now if it waits. */
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
