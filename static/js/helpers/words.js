// Sentences with numbers in them.

import { gettext, language, locale, ngettext, number } from "./gettext.js";

const ORDINALS = new Intl.PluralRules(language, { type: "ordinal" });

const SIZES = [
  ["kilobyte", 1_000, 0],
  ["megabyte", 1_000_000, 1],
  ["gigabyte", 1_000_000_000, 1],
];

/** The size of a file: "340 kB", "2.4 MB", "1 GB", as chatproject/lib/languages.py writes it. */
export function fileSize(bytes) {
  const rounded = SIZES.map(([unit, size, places]) => [unit, Number((bytes / size).toFixed(places))]);
  const [unit, value] = rounded.find(([, number]) => number < 1_000) ?? rounded.at(-1);
  const format = new Intl.NumberFormat(locale, { style: "unit", unit, maximumFractionDigits: 1 });
  return format.format(bytes > 0 ? Math.max(1, value) : 0);
}

/** A duration, no more exact than an estimate can be: "about 5 s". */
export function about(seconds) {
  const fives = 5 * Math.max(1, Math.round(seconds / 5));
  if (fives < 60) return gettext("about {count} s", { count: fives });
  return gettext("about {count} min", { count: Math.round(seconds / 60) });
}

/**
 * The status of a queued run. `position` is its queue position (1: the next; 0: a worker is taking
 * it), or its position among this user's throttled runs if it is one of them, or among the runs that
 * wait for a busy provider; `eta` is in seconds.
 */
export function queueStatus(position, eta = null, throttled = false, busy = false) {
  if (position < 1) return gettext("Starting…");
  if (busy) return gettext("The model is busy: {place}", { place: inLine(position) });
  const place = throttled ? behindOwn(position - 1) : gettext("Queued, {place}", { place: inLine(position) });
  return eta ? gettext("{place}, {time}", { place, time: about(eta) }) : place;
}

function inLine(position) {
  if (position === 1) return gettext("next in line");
  return gettext("{ordinal} in line", { ordinal: ordinal(position) });
}

function ordinal(position) {
  const n = number(position);
  switch (ORDINALS.select(position)) {
    case "one":
      return gettext("{n}st", { n });
    case "two":
      return gettext("{n}nd", { n });
    case "few":
      return gettext("{n}rd", { n });
    default:
      return gettext("{n}th", { n });
  }
}

function behindOwn(ahead) {
  if (ahead === 0) return gettext("Queued behind your other replies");
  return ngettext(
    "Queued behind your other replies, {count} message ahead",
    "Queued behind your other replies, {count} messages ahead",
    ahead,
  );
}

/** The label of a retry button that is disabled for so many more seconds. */
export function retryLabel(seconds) {
  if (seconds <= 0) return gettext("Try again");
  if (seconds < 120) return gettext("Try again in {count} s", { count: seconds });
  return gettext("Try again in {count} min", { count: Math.ceil(seconds / 60) });
}

/** The number of characters left; empty while more than a tenth of the maximum is left. */
export function remaining(length, max) {
  const left = max - length;
  if (left > max / 10) return "";
  if (left < 0) return ngettext("{count} character over the limit", "{count} characters over the limit", -left);
  return ngettext("{count} character left", "{count} characters left", left);
}

/** Micro-credits as the server writes them (billing/credits.py): "1,234.50", "0.31", and "<0.01" instead of 0. */
export function credits(micro) {
  const sign = micro < 0 ? "\u2212" : "";
  const hundredths = Math.floor(Math.abs(micro) / 10_000);
  if (hundredths === 0 && micro !== 0) return sign + gettext("<{amount}", { amount: number(0.01, 2) });
  return sign + number(hundredths / 100, hundredths % 100 === 0 ? 0 : 2);
}
