// Sentences that depend on numbers.

/** 1st, 2nd, 3rd, 4th, 11th, 21st */
export function ordinal(number) {
  const tens = number % 100;
  if (tens >= 11 && tens <= 13) return `${number}th`;
  return `${number}${["th", "st", "nd", "rd"][number % 10] ?? "th"}`;
}

/** A wait as one speaks of it: "about 4 s", "about 3 min". */
export function about(seconds) {
  const whole = Math.max(1, Math.round(seconds));
  return whole < 90 ? `about ${whole} s` : `about ${Math.round(whole / 60)} min`;
}

/** How a waiting run stands. `position` is its place in line (1: the next), 0 when none is known. */
export function queued(position, eta = null) {
  if (position < 1) return "Starting the reply";
  const place = position === 1 ? "next in line" : `${ordinal(position)} in line`;
  return eta ? `Queued, ${place}, ${about(eta)}` : `Queued, ${place}`;
}

/** What is left of the longest message; empty while there is plenty. */
export function remaining(length, most) {
  const left = most - length;
  if (left > most / 10) return "";
  if (left < 0) return `${(-left).toLocaleString("en")} characters too many`;
  return `${left.toLocaleString("en")} characters left`;
}
