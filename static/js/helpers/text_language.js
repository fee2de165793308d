// The language of a text: by its letters, or by frequent words where many languages share them.

const LETTERS = {
  ja: /[\p{sc=Hiragana}\p{sc=Katakana}]/gu, zh: /\p{sc=Han}/gu, ko: /\p{sc=Hangul}/gu, ar: /\p{sc=Arabic}/gu, he: /\p{sc=Hebrew}/gu,
  ru: /\p{sc=Cyrillic}/gu, el: /\p{sc=Greek}/gu, hi: /\p{sc=Devanagari}/gu, th: /\p{sc=Thai}/gu,
};
const WORDS = {
  en: /^(the|of|and|to|in|is|that|for|it|with|as|are|this|be|on)$/u,
  de: /^(der|die|das|und|ist|ein|eine|nicht|zu|den|mit|für|auf|im|sich)$/u,
  es: /^(el|la|de|que|y|en|los|se|del|las|un|por|con|una|para|es)$/u,
  fr: /^(le|la|les|et|des|est|en|du|une|que|pour|dans|qui|pas|sur)$/u,
  it: /^(il|di|che|e|la|per|un|è|non|una|sono|con|del|si|della)$/u,
  pt: /^(o|de|que|e|do|da|em|um|para|com|não|uma|os|no|se)$/u,
  nl: /^(de|het|een|en|van|ik|dat|is|niet|in|op|zijn|te|voor|met)$/u,
};
const SAMPLE = 2_000; // characters

/** The code of a text's language, such as "de"; `usual` when it cannot be determined. */
export function languageOf(text, usual) {
  const sample = text.slice(0, SAMPLE);
  const letters = sample.match(/\p{L}/gu)?.length ?? 0;
  for (const [code, pattern] of Object.entries(LETTERS)) {
    const share = (sample.match(pattern)?.length ?? 0) / letters;
    if (share > (code === "ja" ? 0.1 : 0.3)) return code;
  }
  const words = sample.toLowerCase().match(/\p{L}+/gu) ?? [];
  const counts = Object.entries(WORDS).map(([code, frequent]) => [words.filter((word) => frequent.test(word)).length, code]);
  const [[most, code]] = counts.sort(([one], [other]) => other - one);
  return most > 0 ? code : usual;
}
