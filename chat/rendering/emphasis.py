"""Inline parsing with emphasis that works beside Chinese, Japanese and Korean text.

CommonMark refuses the end of an emphasis between punctuation and a letter, since in most scripts a space
follows there. Chinese and Japanese have no spaces: `**「太字」**です` would stay as written. The rule is
amended as markdown-it's CJK-friendly extension does: punctuation of these scripts does not count as
punctuation, and their characters count as a boundary.
"""

from __future__ import annotations

import unicodedata
from functools import lru_cache
from typing import NamedTuple

from markdown_it import MarkdownIt
from markdown_it.common.utils import isMdAsciiPunct, isPunctChar, isWhiteSpace
from markdown_it.parser_inline import ParserInline
from markdown_it.rules_inline import StateInline
from markdown_it.rules_inline.state_inline import Scanned
from markdown_it.token import Token
from markdown_it.utils import EnvType

# Selects the full-width form of a quotation mark.
FULLWIDTH_SELECTOR = "\ufe01"
AMBIGUOUS_QUOTES = "\u2018\u2019\u201c\u201d"


class Kind(NamedTuple):
    """A character as the rule for emphasis sees it.

    `is_foreign`: it is punctuation of another script than Chinese, Japanese or Korean. `is_boundary`:
    foreign punctuation on its other side is no obstacle.
    """

    is_space: bool
    is_punctuation: bool
    is_foreign: bool
    is_boundary: bool


class State(StateInline):
    """The state of one block's inline text, with the amended rule for emphasis."""

    def scanDelims(self, start: int, canSplitWord: bool) -> Scanned:  # noqa: N802, N803
        """Measure a run of markers, and return whether it can open or close emphasis."""
        src, marker, end = self.src, self.src[start], start
        while end < self.posMax and src[end] == marker:
            end += 1
        self.env["budget"].spend(end - start)
        before = kind_before(src, start)
        after = kind(src[end]) if end < self.posMax else kind(" ")
        is_left_flanking = not after.is_space and (not after.is_foreign or before.is_boundary)
        is_right_flanking = not before.is_space and (not before.is_foreign or after.is_boundary)
        can_open = is_left_flanking and (
            canSplitWord or not is_right_flanking or before.is_punctuation
        )
        can_close = is_right_flanking and (
            canSplitWord or not is_left_flanking or after.is_punctuation
        )
        return Scanned(can_open, can_close, end - start)


class InlineParser(ParserInline):
    """Parses the text of a block, within the budget of the whole text."""

    def skipToken(self, state: StateInline) -> None:  # noqa: N802
        state.env["budget"].spend(1)
        super().skipToken(state)

    def parse(self, src: str, md: MarkdownIt, env: EnvType, tokens: list[Token]) -> list[Token]:
        """Append the tokens of a text. Raises TooCostly."""
        state = State(src, md, env, tokens)
        self.tokenize(state)
        for rule in self.ruler2.getRules(""):
            rule(state)
        return state.tokens


def kind_before(src: str, start: int) -> Kind:
    """Return the kind of the character before a run; variation selectors belong to it."""
    if start == 0:
        return kind(" ")
    char = src[start - 1]
    if not "\ufe00" <= char <= "\ufe0e" or start == 1:
        return kind(char)
    if char == FULLWIDTH_SELECTOR and src[start - 2] in AMBIGUOUS_QUOTES:
        return kind("\u300c")  # punctuation of these scripts
    return kind(src[start - 2])


@lru_cache(maxsize=4096)
def kind(char: str) -> Kind:
    """Return the kind of a character."""
    code = ord(char)
    is_space, is_east_asian = isWhiteSpace(code), is_cjk(char, code)
    is_punctuation = isMdAsciiPunct(code) or isPunctChar(char)
    return Kind(
        is_space=is_space,
        is_punctuation=is_punctuation,
        is_foreign=is_punctuation and not is_east_asian,
        is_boundary=is_space or is_punctuation or is_east_asian,
    )


def is_cjk(char: str, code: int) -> bool:
    """Return whether a character belongs to a script of East Asia; emoji do not."""
    if code < 0x1100:
        return False
    is_hangul_letter = code <= 0x11FF or 0xD7B0 <= code <= 0xD7FF
    is_ideographic_selector = 0xE0100 <= code <= 0xE01EF
    if is_hangul_letter or is_ideographic_selector:
        return True
    if unicodedata.east_asian_width(char) not in "WFH":
        return False
    is_emoji = code < 0x2E80 or 0x1F000 <= code <= 0x1F1FF or 0x1F266 <= code <= 0x1FAFF
    return not is_emoji or unicodedata.category(char) != "So"
