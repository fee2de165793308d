"""The language of a document, guessed from the beginning of its text."""

from __future__ import annotations

import re
from collections import Counter

from chat.conversations import search_words

SAMPLE = 4_000  # characters that are looked at
LEAST_LETTERS = 20
CODES = {  # of the text search configurations that are told apart
    "english": "en",
    "german": "de",
    "french": "fr",
    "spanish": "es",
    "portuguese": "pt",
    "italian": "it",
    "dutch": "nl",
    "russian": "ru",
    "arabic": "ar",
}
# Scripts that one language alone, or nearly so, is written in.
SCRIPTS = {
    "ja": "\u3040-\u30ff",
    "ko": "\uac00-\ud7af",
    "zh": "\u3400-\u4dbf\u4e00-\u9fff",
    "he": "\u0590-\u05ff",
    "el": "\u0370-\u03ff",
    "th": "\u0e00-\u0e7f",
}
_SCRIPTS = {code: re.compile(f"[{letters}]") for code, letters in SCRIPTS.items()}
LETTER = re.compile(r"[^\W\d_]")


def of_text(text: str) -> str:
    """Return the code of the language of a text, empty if it is unclear."""
    sample = text[:SAMPLE]
    letters = len(LETTER.findall(sample))
    if letters < LEAST_LETTERS:
        return ""
    counts = Counter({code: len(one.findall(sample)) for code, one in _SCRIPTS.items()})
    if counts["ja"] > letters / 10:  # it has the characters of Chinese, too
        return "ja"
    code, count = counts.most_common(1)[0]
    if count > letters / 2:
        return code
    return CODES.get(search_words.language_of(search_words.normalize(sample)), "")
