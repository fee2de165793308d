// Reads a text aloud with a voice of this device: a voice of a service would send the text to it.

import { language } from "../helpers/gettext.js";
import { languageOf } from "../helpers/text_language.js";

const MAX_PIECE = 250; // characters; some engines stop within a longer one

export class ReadingAloud {
  #key = null; // of the text that is being read

  /** The local voice for a text; undefined without one. */
  voiceFor(text) {
    const code = languageOf(text, language);
    const voices = globalThis.speechSynthesis?.getVoices() ?? [];
    const fitting = voices.filter((voice) => voice.localService && voice.lang.toLowerCase().split(/[-_]/)[0] === code);
    return fitting.find((voice) => voice.default) ?? fitting[0];
  }

  isReading(key) {
    return this.#key === key && speechSynthesis.speaking;
  }

  /** Read a text, in place of another one. `key` names it. */
  start(key, text) {
    const voice = this.voiceFor(text);
    this.stop();
    if (voice === undefined) return;
    this.#key = key;
    for (const piece of piecesOf(text)) {
      const utterance = new SpeechSynthesisUtterance(piece);
      utterance.voice = voice;
      utterance.lang = voice.lang;
      speechSynthesis.speak(utterance);
    }
  }

  stop() {
    if (this.#key !== null) speechSynthesis.cancel();
    this.#key = null;
  }
}

/** Split a text at the ends of its sentences, and long sentences between words. */
export function piecesOf(text) {
  const sentences = text.match(/[^.!?。！？؟\n]+[.!?。！？؟]*\s*/gu) ?? [];
  return sentences
    .flatMap((sentence) => sentence.match(new RegExp(`.{1,${MAX_PIECE}}(?:\\s|$)|.{1,${MAX_PIECE}}`, "gsu")) ?? [])
    .map((piece) => piece.trim())
    .filter((piece) => /[\p{L}\p{N}]/u.test(piece));
}
