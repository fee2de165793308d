"""Words, links and emojis of a text, in any script."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache
from itertools import pairwise

import emoji

from chat.documents.statistics.stop_words import STOP_WORDS

LINK = re.compile(
    r"(?:https?://|www\.)(?P<host>[^\s/?#:<>\"'()\[\]{},;]{3,253})[^\s<>\"]*", re.IGNORECASE
)
SHORTEST = 3  # characters of a word of an alphabet that is worth a place in a list
LONGEST = 40


def _marks() -> str:
    """Return a character class of the marks that belong to words, which `\\w` leaves out."""
    ranges: list[list[int]] = []
    for code in range(0x0300, 0x20F0):
        if unicodedata.category(chr(code)) in ("Mn", "Mc"):
            if ranges and ranges[-1][1] == code - 1:
                ranges[-1][1] = code
            else:
                ranges.append([code, code])
    return "".join(f"{chr(first)}-{chr(last)}" for first, last in ranges)


_MARKS = _marks()
MARK = re.compile(f"[{_MARKS}]")
_LETTER = f"(?:[^\\W\\d_]|[{_MARKS}])"
MARKED_WORD = re.compile(f"[^\\W\\d_]{_LETTER}*(?:['’\u2011-][^\\W\\d_]{_LETTER}*)*")
WORD = re.compile("[^\\W\\d_]+(?:['’\u2011-][^\\W\\d_]+)*")  # three times as fast
# Scripts that are written without spaces.
IDEOGRAPHS = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\u3005\u3040-\u30ff]+")
KANJI = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")
UNSPACED = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]+")  # Thai, Lao, Burmese, Khmer
WITHOUT_SPACES = re.compile(f"{IDEOGRAPHS.pattern[:-1]}|{UNSPACED.pattern[:-1]}")
LETTERS_OF_A_WORD = 5  # in those, on average
ARABIC_MARKS = re.compile("[\u0640\u064b-\u0652\u0670]")


def without_links(text: str) -> tuple[str, list[str]]:
    """Return a text without its links, and their hosts without "www."."""
    if "://" not in text and "www." not in text.lower():
        return text, []
    hosts = [
        match["host"].lower().removeprefix("www.").rstrip(".") for match in LINK.finditer(text)
    ]
    return LINK.sub(" ", text), hosts


def words(text: str) -> tuple[int, Iterable[str]]:
    """Return how many words a text has, and those that are worth a place in a list of words."""
    found = (MARKED_WORD if MARK.search(text) else WORD).findall(text)
    if text.isascii() or not WITHOUT_SPACES.search(text):
        return len(found), _listed(found)
    count, listed = 0, []
    for run in found:
        if IDEOGRAPHS.search(run):
            # Counted by characters, as Chinese and Japanese do; listed by pairs, most of which are words.
            for part in IDEOGRAPHS.findall(run):
                count += len(part)
                listed += [
                    pair
                    for pair in map("".join, pairwise(part))
                    if KANJI.match(pair[0]) and KANJI.match(pair[1])
                ]
        elif UNSPACED.match(run):
            count += max(1, len(run) // LETTERS_OF_A_WORD)
        else:
            count += 1
            listed.append(run)
    return count, _listed(listed)


def _listed(found: list[str]) -> Iterable[str]:
    return filter(None, map(_listed_word, found))


@lru_cache(50_000)
def _listed_word(word: str) -> str:
    """Return a word as lists show it, or nothing for one without content of its own."""
    # Lower case, not casefold, which would write "groß" as "gross".
    word = ARABIC_MARKS.sub("", unicodedata.normalize("NFC", word)).lower().replace("’", "'")
    is_long_enough = len(word) >= SHORTEST or KANJI.match(word)
    return word if is_long_enough and len(word) <= LONGEST and word not in STOP_WORDS else ""


# --- Emojis -----------------------------------------------------------------------------------

TONES = "\U0001f3fb-\U0001f3ff"
_PLANE = (
    "\U0001f000-\U0001faff"  # one range: a class of a thousand characters is searched one by one
)
_FIRST = "".join(
    sorted(
        {key[0] for key in emoji.EMOJI_DATA if key[0] not in "#*0123456789" and key < "\U0001f000"}
    )
)
_ONE = f"[{re.escape(_FIRST)}{_PLANE}]\ufe0f?[{TONES}]?"
EMOJI = re.compile(
    rf"[\U0001f1e6-\U0001f1ff]{{2}}|[#*0-9]\ufe0f?\u20e3|"
    rf"\U0001f3f4[\U000e0020-\U000e007f]+|{_ONE}(?:\u200d{_ONE})*"
)
TONE = re.compile(f"[{TONES}]")


def emojis(text: str) -> list[str]:
    """Return the emojis of a text in their order, without tones of skin."""
    if text.isascii():
        return []
    found = []
    for candidate in EMOJI.findall(text):
        one = TONE.sub("", candidate) if len(candidate) > 1 else candidate
        if emoji.is_emoji(one) or emoji.is_emoji(f"{one}\ufe0f"):
            found.append(one.rstrip("\ufe0f") if len(one) == 2 else one)
        else:
            found += [part for part in one if emoji.is_emoji(part)]
    return found
