import assert from "node:assert/strict";
import { test } from "node:test";

globalThis.catalog = {
  language: "ar",
  plural: (n) => (n === 1 ? 0 : n === 2 ? 1 : 2),
  messages: { "Hello, {name}": "أهلا {name}", "{count} message": ["رسالة", "رسالتان", "{count} رسائل"] },
};
const { gettext, language, ngettext, number } = await import("../../static/js/helpers/gettext.js");
const { credits } = await import("../../static/js/helpers/words.js");

test("texts of the catalogue replace the sources, with their values", () => {
  assert.equal(language, "ar");
  assert.equal(gettext("Hello, {name}", { name: "Rana" }), "أهلا Rana");
  assert.equal(gettext("constructor"), "constructor");
  assert.equal(gettext("About {amount}, {other}", { amount: 1_234 }), "About 1,234, {other}");
  assert.deepEqual([1, 2, 1_500].map((n) => ngettext("{count} message", "{count} messages", n)), [
    "رسالة",
    "رسالتان",
    "1,500 رسائل",
  ]);
  assert.equal(ngettext("{count} file", "{count} files", 2), "2 files");
});

test("amounts are written as the server writes them", () => {
  assert.equal(number(1_234.5, 2), "1,234.50");
  const micro = [0, 9_999, -9_999, 310_000, 12_009_999, 1_234_500_000, -5_000_000];
  assert.deepEqual(micro.map(credits), ["0", "<0.01", "\u2212<0.01", "0.31", "12", "1,234.50", "\u22125"]);
});
