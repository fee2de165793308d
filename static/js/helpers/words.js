// Sentences with numbers in them.

const ORDINALS = new Intl.PluralRules("en", { type: "ordinal" });
const SUFFIXES = { one: "st", two: "nd", few: "rd", other: "th" };

/** A duration, no more exact than an estimate can be: "about 5 s". */
export function about(seconds) {
  const fives = 5 * Math.max(1, Math.round(seconds / 5));
  if (fives < 60) return `about ${fives} s`;
  return `about ${Math.round(seconds / 60)} min`;
}

/**
 * The status of a queued run. `position` is its queue position (1: the next; 0: a worker is taking
 * it), or its position among this user's throttled runs if it is one of them, or among the runs that
 * wait for a busy provider; `eta` is in seconds.
 */
export function queueStatus(position, eta = null, throttled = false, busy = false) {
  if (position < 1) return "Starting…";
  if (busy) return `The model is busy: ${inLine(position)}`;
  const place = throttled ? behindOwn(position - 1) : `Queued, ${inLine(position)}`;
  return eta ? `${place}, ${about(eta)}` : place;
}

function inLine(position) {
  if (position === 1) return "next in line";
  return `${position.toLocaleString("en")}${SUFFIXES[ORDINALS.select(position)]} in line`;
}

function behindOwn(ahead) {
  const place = "Queued behind your other replies";
  if (ahead === 0) return place;
  return `${place}, ${ahead.toLocaleString("en")} ${ahead === 1 ? "message" : "messages"} ahead`;
}

/** The label of a retry button that is disabled for so many more seconds. */
export function retryLabel(seconds) {
  if (seconds <= 0) return "Try again";
  return seconds < 120 ? `Try again in ${seconds} s` : `Try again in ${Math.ceil(seconds / 60)} min`;
}

/** The number of characters left; empty while more than a tenth of the maximum is left. */
export function remaining(length, max) {
  const left = max - length;
  if (left > max / 10) return "";
  if (left < 0) return `${(-left).toLocaleString("en")} characters over the limit`;
  return `${left.toLocaleString("en")} characters left`;
}
