"""Pieces of text of bounded length, cut where a reader would cut them."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator

LENGTH = 8_000  # characters of a block of text at most
SEARCHED = 1_000  # characters before a cut in which a better place is looked for
ODD = {0: "\ufffd", **dict.fromkeys(range(0xD800, 0xE000), "\ufffd")}  # what Postgres refuses


def storable(text: str) -> str:
    """Return a text without the characters that the database refuses."""
    return text if text.isascii() and "\x00" not in text else text.translate(ODD)


def pieces(text: str, length: int = LENGTH) -> Iterator[str]:
    """Yield a text in pieces of at most `length` characters, cut after a sentence, a word, or a whole character."""
    while len(text) > length:
        at = _cut(text, length)
        yield text[:at].rstrip()
        text = text[at:].lstrip()
    if text:
        yield text


def _cut(text: str, length: int) -> int:
    window = text[length - SEARCHED : length]
    for ends in ("\n", ". ", "! ", "? ", "。", " "):
        if (found := window.rfind(ends)) > 0:
            return length - SEARCHED + found + len(ends)
    at = length
    # Not before a mark that belongs to the character, nor within an emoji of several.
    while at > length - 64 and (
        unicodedata.combining(text[at]) or text[at] in "\u200d\ufe0f" or text[at - 1] == "\u200d"
    ):
        at -= 1
    return at
