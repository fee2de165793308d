"""Words of texts and queries for the full-text search.

Each message is indexed with its words as they are, and with their stems in the language that its most
frequent words indicate. Scripts without spaces between words (Chinese, Japanese, Thai …) are indexed by
characters and pairs of characters (bigrams), as in Lucene's CJKAnalyzer.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise

MAX_INDEXED = 30_000  # characters of a message
MAX_WORDS = 10  # of a query
SAMPLE = 2_000  # characters by which a language is detected

# Text search configurations of Postgres, and frequent words of their languages, as `normalize` returns them.
FREQUENT = {
    "english": "the and of to is that it with for this you what how are",
    "german": "der die das und ist nicht ein eine mit ich wie auf fur den",
    "french": "le les des est et une dans que pour avec pas sur qui je",
    "spanish": "el los las es una que por para con como del se no muy",
    "italian": "il che di gli una per con non della sono questo come",
    "portuguese": "os uma nao que para com do da em voce isso como mais",
    "dutch": "het een van is niet dat met zijn voor op ik deze hoe",
    "russian": "и не на что это как по для он мы из",
    "arabic": "في من على ان الى هذا هو ما لا مع هل التي كان",
}
LANGUAGES = tuple(FREQUENT)
_BY_WORD: dict[str, list[str]] = {}
for _language, _words in FREQUENT.items():
    for _word in _words.split():
        _BY_WORD.setdefault(_word, []).append(_language)

SPACELESS = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"
    "\U00020000-\U0003134f"
)
RUN = re.compile(f"[{SPACELESS}]+")
PHRASE = re.compile(r"[\"“”„«»]([^\"“”„«»]+)[\"“”«»]")
EXCLUDED = re.compile(r"(?:^|\s)-(\w\S*)")
NO_WORD = re.compile(r"[\W_]+")


def normalize(text: str) -> str:
    """Return a text in lower case, without accents and signs, with single spaces between its words.

    So neither the locale of the cluster nor the parser of Postgres decides about letters.
    """
    if not text.isascii():
        decomposed = unicodedata.normalize("NFKD", text)
        letters = (each for each in decomposed if not unicodedata.category(each).startswith("M"))
        text = unicodedata.normalize("NFC", "".join(letters))
    return NO_WORD.sub(" ", text.lower()).strip()


class _Folded(dict[int, str]):
    """The letter without accents in lower case of each character, for `str.translate`."""

    def __missing__(self, code: int) -> str:
        base = unicodedata.normalize("NFKD", chr(code).lower())[:1]
        self[code] = base
        return base


_FOLDED = _Folded()


def fold(text: str) -> str:
    """Return a text without accents in lower case, with as many characters as before."""
    return text.lower() if text.isascii() else text.translate(_FOLDED)


def language_of(normalized: str) -> str:
    """Return the text search configuration of a text; `simple`, which stems nothing, if it is unclear.

    A wrong one does no harm: the words themselves are indexed, too.
    """
    hits = Counter(
        language for word in normalized[:SAMPLE].split() for language in _BY_WORD.get(word, ())
    )
    return next((language for language, _ in hits.most_common(1)), "simple")


def characters_of(normalized: str) -> list[str]:
    """Return the characters and pairs of characters of scripts without spaces, each once."""
    found: set[str] = set()
    for run in RUN.findall(normalized):
        found.update(run)
        found.update(a + b for a, b in pairwise(run))
    return sorted(found)


@dataclass(frozen=True, slots=True)
class Query:
    """The parts of a query: all `words` and `phrases` are wanted, the words of phrases as well."""

    words: list[str]  # at most MAX_WORDS
    phrases: list[str]  # as typed between quotation marks
    excluded: list[str]  # the words after a minus


def parse(query: str) -> Query:
    """Read a query with phrases in quotation marks and words to exclude: `"ebb and flow" -moon`.

    A minus excludes nothing unless another word is wanted, and a quotation mark without its end means nothing.
    """
    quoted = [" ".join(phrase.split()) for phrase in PHRASE.findall(query)]
    outside = PHRASE.sub(" ", query)
    wanted = EXCLUDED.sub(" ", outside)
    words = words_of(" ".join([*quoted, wanted]))
    if not words:
        return Query(words_of(query), [], [])
    excluded = words_of(" ".join(EXCLUDED.findall(outside)))
    return Query(words, [phrase for phrase in quoted if words_of(phrase)], excluded)


def words_of(query: str) -> list[str]:
    """Return the words of a text, at most MAX_WORDS; runs of scripts without spaces are separate words."""
    spaced = RUN.sub(lambda run: f" {run.group()} ", normalize(query))
    return spaced.split()[:MAX_WORDS]


def tsquery(words: list[str], excluded: list[str], stems: dict[str, list[str]]) -> str:
    """Return a query in Postgres' syntax; the last of the wanted `words` may be the beginning of a word.

    `stems` has the stems of a word in some languages; an excluded word is meant as it is. Lexemes are letters and digits alone, so that
    quotes need no escaping.
    """
    terms = []
    for index, word in enumerate(words):
        if RUN.fullmatch(word):
            terms.append(_pairs(word))
            continue
        ending = ":*" if index == len(words) - 1 else ""
        lexemes = [
            f"'{word}'{ending}",
            *(f"'{stem}'" for stem in stems.get(word, ()) if stem != word),
        ]
        terms.append(f"({' | '.join(lexemes)})")
    terms += [f"!({_pairs(word)})" if RUN.fullmatch(word) else f"!'{word}'" for word in excluded]
    return " & ".join(terms)


def _pairs(run: str) -> str:
    pairs = [a + b for a, b in pairwise(run)] or [run]
    return " & ".join(f"'{pair}'" for pair in pairs)
