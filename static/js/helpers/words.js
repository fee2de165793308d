// Sentences that depend on numbers.

/** A wait as one speaks of it, no more exact than it can be known: "about 5 seconds". */
export function about(seconds) {
  const fives = 5 * Math.max(1, Math.round(seconds / 5));
  if (fives < 60) return `about ${fives} seconds`;
  const minutes = Math.round(seconds / 60);
  return minutes <= 1 ? "about a minute" : `about ${minutes} minutes`;
}

/**
 * Where a waiting run stands. `position` is its place in line (1: the next), 0 when a worker takes it;
 * of one that is `held` back, its place among the messages of this user that are.
 */
export function inLine(position, eta = null, held = false) {
  if (position < 1) return "Starting the reply";
  const place = held ? behindOwn(position - 1) : position === 1 ? "Next in line" : before(position - 1);
  return eta ? `${place}, ${about(eta)}` : place;
}

function before(others) {
  return others === 1 ? "1 other is before you" : `${others.toLocaleString("en")} others are before you`;
}

function behindOwn(others) {
  if (others === 0) return "Waiting for your other replies";
  const messages = others === 1 ? "1 of your messages is" : `${others.toLocaleString("en")} of your messages are`;
  return `Waiting for your other replies; ${messages} before this one`;
}

/** What a button says that may be used again in so many seconds. */
export function again(seconds) {
  if (seconds <= 0) return "Try again";
  return seconds < 120 ? `Try again in ${seconds} s` : `Try again in ${Math.ceil(seconds / 60)} min`;
}

/** What is left of the longest message; empty while there is plenty. */
export function remaining(length, most) {
  const left = most - length;
  if (left > most / 10) return "";
  if (left < 0) return `${(-left).toLocaleString("en")} characters too many`;
  return `${left.toLocaleString("en")} characters left`;
}
