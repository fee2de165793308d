"""Parser of Markdown: headings, tables, code and paragraphs, as their source."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from chat.documents.parsing import text
from chat.documents.parsing.errors import ParseError
from chat.documents.parsing.headings import Headings
from chat.documents.parsing.pieces import pieces

Block = dict[str, Any]

HEADING = re.compile(r"\s{0,3}(#{1,6})\s+(.*?)\s*#*\s*$")
UNDERLINE = re.compile(r"\s{0,3}(=+|-+)\s*$")
FENCE = re.compile(r"\s{0,3}(`{3,}|~{3,})")
TABLE_LINE = re.compile(r"\s*\|.*\|\s*$")
FRONT_MATTER = "---"
PARAGRAPH = 4_000  # characters after which a paragraph ends with its line
HEADING_LENGTH = 300


def parse(path: str, options: Mapping[str, Any]) -> Iterator[Block]:
    """Yield the parts of a Markdown text in their order. Raises ParseError `empty`."""
    reading = _Reading()
    for number, line in enumerate(text.lines(path, options)):
        yield from reading.add(line, is_first=number == 0)
    yield from reading.end()
    if not reading.found:
        raise ParseError("empty")


class _Reading:
    """The part that is being read, and the headings above it."""

    def __init__(self) -> None:
        self.found = False
        self._headings = Headings()
        self._lines: list[str] = []
        self._length = 0
        self._fence = ""
        self._is_table = False

    def add(self, line: str, *, is_first: bool) -> Iterator[Block]:
        if self._fence:
            self._take(line)
            if line.strip().startswith(self._fence) or self._length > PARAGRAPH * 4:
                self._fence = ""
                yield from self.end()
            return
        if is_first and line.strip() == FRONT_MATTER:
            self._fence = FRONT_MATTER
            self._take(line)
        elif fence := FENCE.match(line):
            yield from self.end()
            self._fence = fence[1][:3]
            self._take(line)
        elif heading := HEADING.match(line):
            yield from self.end()
            yield from self._heading(len(heading[1]), heading[2])
        elif len(self._lines) == 1 and not self._is_table and UNDERLINE.match(line):
            title, self._lines, self._length = self._lines[0], [], 0
            yield from self._heading(1 if "=" in line else 2, title.strip())
        elif not line.strip():
            yield from self.end()
        else:
            is_table = TABLE_LINE.match(line) is not None
            if is_table != self._is_table or self._length > PARAGRAPH:
                yield from self.end()
            self._is_table = is_table
            self._take(line)

    def _take(self, line: str) -> None:
        self._lines.append(line.rstrip())
        self._length += len(line)

    def _heading(self, level: int, title: str) -> Iterator[Block]:
        if title:
            self.found = True
            yield self._headings.block(level, title[:HEADING_LENGTH])

    def end(self) -> Iterator[Block]:
        whole = "\n".join(self._lines).strip("\n")
        kind = "table" if self._is_table else "paragraph"
        self._lines, self._length, self._is_table = [], 0, False
        for piece in pieces(whole):
            if piece.strip():
                self.found = True
                yield {"kind": kind, "text": piece, "headings": self._headings.path}
