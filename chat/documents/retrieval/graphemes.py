"""Places at which a text may be cut without breaking a character that a reader sees (a grapheme cluster).

The rules of Unicode's annex 29 that matter in practice: marks stay on their letter, joined emojis and flags stay
whole, and so do syllables of Hangul and a line end of two characters.
"""

from __future__ import annotations

import re
import unicodedata

JOINER = "\u200d"
MODIFIERS = range(0x1F3FB, 0x1F400)  # skin tones
TAGS = range(0xE0020, 0xE0080)  # of flags of regions
REGIONAL = range(0x1F1E6, 0x1F200)
HANGUL_VOWELS_AND_ENDS = range(0x1160, 0x1200)
# After a full stop, also of Chinese, Arabic and Hindi, with quotation marks and brackets behind it, or at a line end.
SENTENCE_END = re.compile(
    "[.!?\u2026\u3002\uff01\uff1f\u061f\u0964]+[\"'\u201d\u2019\u00bb)\\]]*\\s+|\\n+|[\u3002\uff01\uff1f]"
)
SPACE = re.compile(r"\s+")
LOOKBACK = 200  # characters that are looked through for a better place


def is_boundary(text: str, index: int) -> bool:
    """Return whether a text may be cut before the character at `index`."""
    if index <= 0 or index >= len(text):
        return True
    before, after = text[index - 1], text[index]
    if before.isascii() and after.isascii():
        return not (before == "\r" and after == "\n")
    code = ord(after)
    if after == JOINER or before == JOINER or code in MODIFIERS or code in TAGS:
        return False
    if unicodedata.category(after)[0] == "M" or code in HANGUL_VOWELS_AND_ENDS:
        return False
    if code in REGIONAL and ord(before) in REGIONAL:
        run = index
        while run > 0 and ord(text[run - 1]) in REGIONAL and index - run < LOOKBACK:
            run -= 1
        return (index - run) % 2 == 0
    return True


def cut(text: str, begin: int, most_bytes: int) -> int:
    """Return where a piece that begins at `begin` ends: after at most so many bytes of UTF-8, at a good place.

    After a sentence if one ends in the second half, else at a space, else between two graphemes. A single
    grapheme that is longer (a letter with hundreds of marks) is cut, so that the piece stays bounded.
    """
    # A character has one byte at least, so the slice holds the piece.
    window = text[begin : begin + most_bytes]
    fitting = window.encode("utf-8", "surrogatepass")[:most_bytes].decode("utf-8", "ignore")
    if len(fitting) == len(text) - begin:
        return len(text)
    end = begin + len(fitting)
    half = begin + len(fitting) // 2
    for pattern in (SENTENCE_END, SPACE):
        ends = [match.end() for match in pattern.finditer(text, half, end)]
        found = next((one for one in reversed(ends) if is_boundary(text, one)), None)
        if found is not None:
            return found
    lowest = max(begin + 1, end - LOOKBACK)
    return next((one for one in range(end, lowest, -1) if is_boundary(text, one)), end)
