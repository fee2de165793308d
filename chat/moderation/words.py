"""Lists of words: folding of texts, and a search whose time grows with the text alone.

No regular expression comes from the staff. Both text and list are folded: compatibility forms, upper case,
accents and invisible characters make no difference (Unicode's NFKD and case folding).
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache

WORD = re.compile(r"\w+")
DROPPED = {"Mn", "Me", "Cf"}  # combining and formatting characters

# Scripts without spaces between words, whose words are found anywhere in a text.
UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]"
    "|[\U00020000-\U0003ffff]"
)


def tokens(text: str) -> list[str]:
    """Return the folded words of a text."""
    plain = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).casefold())
    return WORD.findall("".join(one for one in plain if unicodedata.category(one) not in DROPPED))


@dataclass(frozen=True, slots=True)
class WordList:
    """A compiled list: whole words, phrases between spaces, and parts that may be anywhere."""

    words: frozenset[str]
    phrases: tuple[str, ...]
    parts: tuple[str, ...]

    def matches(self, found: list[str]) -> bool:
        """Return whether one of the list is in a text, given as its `tokens`."""
        if not self.words.isdisjoint(found):
            return True
        spaced = f" {' '.join(found)} "
        joined = "".join(found)
        return any(one in spaced for one in self.phrases) or any(
            one in joined for one in self.parts
        )


@lru_cache(maxsize=64)
def compiled(lines: str) -> WordList:
    """Return the list of a rule: one word or phrase a line; with a * at its end it may go on."""
    words, phrases, parts = set(), [], []
    for line in lines.splitlines():
        found = tokens(line)
        if not found:
            continue
        if UNSPACED.search("".join(found)):
            parts.append("".join(found))
        elif line.rstrip().endswith("*"):
            phrases.append(f" {' '.join(found)}")
        elif len(found) > 1:
            phrases.append(f" {' '.join(found)} ")
        else:
            words.add(found[0])
    return WordList(frozenset(words), tuple(phrases), tuple(parts))
