import assert from "node:assert/strict";
import { test } from "node:test";

import { languageOf } from "../../static/js/helpers/text_language.js";
import { piecesOf, ReadingAloud } from "../../static/js/models/reading_aloud.js";

test("the language of a text is found by its letters or its frequent words", () => {
  assert.equal(languageOf("The tide is in the harbour.", "de"), "en");
  assert.equal(languageOf("Das Boot ist nicht im Hafen.", "en"), "de");
  assert.equal(languageOf("El barco no está en el puerto.", "en"), "es");
  assert.equal(languageOf("المد والجزر في الميناء", "en"), "ar");
  assert.equal(languageOf("潮が満ちる", "en"), "ja");
  assert.equal(languageOf("潮汐", "en"), "zh");
  assert.equal(languageOf("42", "es"), "es");
});

test("a text is read in pieces of bounded length that lose no word", () => {
  const long = `${"word ".repeat(200)}end. Second one! ${"x".repeat(600)}`;
  const pieces = piecesOf(long);
  assert.ok(pieces.every((piece) => piece.length <= 250));
  assert.equal(pieces.join("").replace(/\s/g, ""), long.replace(/\s/g, ""));
  assert.deepEqual(piecesOf("... --- \n"), []);
});

test("only a voice of the device reads", () => {
  globalThis.speechSynthesis = { getVoices: () => [{ lang: "en-US", localService: false }, { lang: "de-DE", localService: true }] };
  const reading = new ReadingAloud();
  assert.equal(reading.voiceFor("The tide is in."), undefined);
  assert.equal(reading.voiceFor("Das ist die Flut.").lang, "de-DE");
  delete globalThis.speechSynthesis;
  assert.equal(reading.voiceFor("The tide is in."), undefined);
});
