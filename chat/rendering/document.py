"""Renders a reply block by block, while it streams in or at once: the HTML is the same."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from chat.rendering import markdown
from chat.rendering.budget import Budget
from chat.rendering.markdown import Context, Rendered
from chat.rendering.splitter import Block, Join, Splitter

# A block that is rendered at once on an event loop has at most so many characters, and signs of markup.
LIGHT = 2_000
LIGHT_SIGNS = 150
SIGNS = "[]*_`~<$\\>|"


def to_html(text: str) -> str:
    """Render a reply as HTML. Accepts any text, never raises; time is linear in its length."""
    document = Document()
    document.render(document.split(text))
    document.render(document.split_rest())
    document.settle()
    return document.html()


def is_light(blocks: Iterable[Block]) -> bool:
    """Return whether blocks are rendered within few milliseconds, whatever their markup; code is not."""
    texts = [block.text for block in blocks]
    if any("```" in text or "~~~" in text for text in texts):
        return False  # the first code of a language loads its lexer, too
    signs = sum(text.count(sign) for text in texts for sign in SIGNS)
    return sum(map(len, texts)) <= LIGHT and signs <= LIGHT_SIGNS


def utf16_length(text: str) -> int:
    """Return the length of a text in UTF-16 code units."""
    return len(text) if text.isascii() else len(text.encode("utf-16-le", "surrogatepass")) // 2


class Change(NamedTuple):
    """The HTML of blocks from a number on, counted from 0.

    Parts that belong to the list or the table before them begin with `<li` or `<tr`.
    """

    first: int
    blocks: list[str]


@dataclass(slots=True)
class _Unsettled:
    """A block that depends on definitions after it, and the state before it.

    `missing` and `shown` are labels as in `References`.
    """

    number: int
    block: Block
    missing: set[str]
    shown: set[str]
    headings: frozenset[str]
    is_list_loose: bool
    open: Join


class Document:
    """A reply that is rendered while it streams in.

    `split` finds the blocks of the text, and is quick. `render` takes about a millisecond per thousand
    characters, and is bounded for all blocks together (budget.py). The two may run at the same time.
    """

    def __init__(self) -> None:
        self._splitter = Splitter(markdown.is_table)
        self._context = Context()
        self._rendered: list[Rendered] = []
        self._unsettled: list[_Unsettled] = []
        self._changes: list[Change] = []
        self.units = 0  # of the text, in UTF-16 code units
        self.length = 0  # of the text, in characters

    def split(self, text: str) -> list[Block]:
        """Add text; returns the blocks that have ended, to be rendered in this order."""
        self.length += len(text)
        self.units += utf16_length(text)
        return self._splitter.feed(text)

    def split_rest(self) -> list[Block]:
        """Return the last blocks: the text is complete."""
        return self._splitter.end()

    @property
    def split_length(self) -> int:
        """The length of the text whose blocks have ended, in UTF-16 code units, as browsers count."""
        return self.units - utf16_length(self._splitter.open_text)

    @property
    def count(self) -> int:
        """The number of blocks that are rendered."""
        return len(self._rendered)

    def render(self, blocks: Iterable[Block]) -> None:
        """Render blocks."""
        first = len(self._rendered)
        for block in blocks:
            self._render(block)
        new = [rendered.html + rendered.end for rendered in self._rendered[first:]]
        if new:
            self._changes.append(Change(first, new))

    def _render(self, block: Block) -> None:
        context, number = self._context, len(self._rendered)
        before = frozenset(context.env["headings"]), context.is_list_loose, context.open
        references = context.references
        references.begin_block(number)
        self._rendered.append(markdown.render_block(block, context))
        if references.missing or references.shown:
            missing, shown = references.missing, references.shown
            self._unsettled.append(_Unsettled(number, block, missing, shown, *before))

    def settle(self) -> None:
        """Render blocks again that a definition after them changes: all blocks are rendered."""
        unsettled, self._unsettled = self._unsettled, []
        self._context.env["budget"] = Budget()
        # First the links, as a definition is shown unless a link uses it.
        for item in unsettled:
            if item.missing & self._context.references.keys():
                self._render_again(item)
        for item in unsettled:
            if item.shown & self._context.references.used:
                self._render_again(item)

    def _render_again(self, item: _Unsettled) -> None:
        context = self._context
        context.references.begin_block(item.number)
        context.env["headings"] = set(item.headings)
        context.is_list_loose, context.open = item.is_list_loose, item.open
        rendered = markdown.render_block(item.block, context)
        old = self._rendered[item.number]
        if (rendered.join, rendered.end) == (old.join, old.end) and rendered.html != old.html:
            self._rendered[item.number] = rendered
            self._changes.append(Change(item.number, [rendered.html + rendered.end]))

    def take_changes(self) -> list[Change]:
        """Return what `render` and `settle` have changed since the last call."""
        changes, self._changes = self._changes, []
        return changes

    def html(self) -> str:
        """Return the HTML of all rendered blocks."""
        pieces: list[str] = []
        end = ""
        for rendered in self._rendered:
            if rendered.join is Join.NONE:
                pieces.append(end)
                end = rendered.end
            pieces.append(rendered.html)
        pieces.append(end)
        return "".join(pieces)
