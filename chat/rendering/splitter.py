"""Splits a reply in Markdown into blocks, each of which is rendered alone and never changes afterwards.

An item of a list is a block, and so are the head and each row of a table. The splitter reads lines in one
pass, so a reply that streams in is split as one that is complete, in time that is linear in its length.
Where an end is hard to find a block contains several, but never half of one.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable
from enum import Enum, auto
from typing import NamedTuple

from chat.rendering.formulas import AFTER_FORMULA, CLOSERS, MAX_LINES
from chat.rendering.notes import DEFINITION

FENCE = re.compile(r" {0,3}(?P<fence>`{3,}(?=[^`]*$)|~{3,})")
HEADING = re.compile(r" {0,3}#{1,6}(?:[ \t]|$)")
RULE = re.compile(r" {0,3}(?P<mark>[-*_])[ \t]*(?:(?P=mark)[ \t]*){2,}$")
QUOTE = re.compile(r" {0,3}>")
ITEM = re.compile(r"(?P<indent> {0,3})(?P<marker>[-*+]|\d{1,9}[.)])(?P<space>[ \t]+|$)")
DELIMITERS = re.compile(r" {0,3}[-:|](?=[^-]*-|(?<=-))[-:| \t]*$")
OPENER = re.compile(r" {0,3}(?P<opener>\$\$|\\\[)(?P<rest>.*)")
NOTE = re.compile(rf" {{0,3}}{DEFINITION.pattern}")

# The beginning of a line that shows, before the line ends, that it begins an item, or that it belongs to
# no list or code above it.
BEGUN_ITEM = re.compile(r" {0,3}(?:[-*+]|\d{1,9}[.)])[ \t]+(?:[^\s\-*_]|\*\*[^\s*])")
BEGUN_TEXT = re.compile(r"\*\*[^\s*]|[^\W\d_]")

# Formulas without an end for which lines are read twice. A text with more of them is hostile.
MAX_REREADINGS = 50


class Join(Enum):
    """The place of a block: a block of its own, or in the list or the table before it."""

    NONE = auto()
    ITEM = auto()
    ROW = auto()


class Block(NamedTuple):
    """A block of a reply.

    `head` are the two lines of a table's head, for the head and each row. `is_loose`: a blank line
    separates an item from the next one.
    """

    text: str
    join: Join = Join.NONE
    head: str = ""
    is_loose: bool = False


class Mode(Enum):
    """The kind of the block that is open."""

    NONE = auto()
    TEXT = auto()
    FENCE = auto()
    INDENTED = auto()
    LIST = auto()
    NOTE = auto()
    TABLE = auto()
    FORMULA = auto()


class Splitter:
    """Splits a text that arrives in pieces. `is_table` decides whether two lines are the head of a table."""

    def __init__(self, is_table: Callable[[str], bool]) -> None:
        self._is_table = is_table
        self._blocks: list[Block] = []
        self._lines: list[str] = []  # of the open block
        self._rest = ""  # the line that has not ended
        self._mode = Mode.NONE
        self._join = Join.NONE  # of the open block
        self._after_blank = False
        self._fence = ""  # the marks of the open fence
        self._width = 0  # of the open item's indentation
        self._mark = ""  # of the list that is open or has just ended
        self._head = ""  # of the open table
        self._formula: list[str] = []  # the lines of a formula that may have no end
        self._closer = ""
        self._is_alone = False  # the formula may have blank lines
        self._rereadings = 0

    def feed(self, text: str) -> list[Block]:
        """Add text, and return the blocks that have ended."""
        if "\n" in text:
            *lines, self._rest = (self._rest + text).split("\n")
            self._read_lines(lines)
        else:
            self._rest += text
        if self._mode not in (Mode.NONE, Mode.FENCE) and not self._formula:
            self._peek()
        return self._take()

    def end(self) -> list[Block]:
        """Return the last blocks: the text is complete."""
        if self._rest:
            self._read_lines([self._rest])
            self._rest = ""
        while self._formula:
            lines, self._formula = self._formula, []
            self._read_lines(lines, first_is_formula=False)
        self._emit()
        return self._take()

    @property
    def open_text(self) -> str:
        """The text of which no block has been returned."""
        held = "".join(f"{line}\n" for line in self._formula)
        return "".join(self._lines) + held + self._rest

    def _take(self) -> list[Block]:
        blocks, self._blocks = self._blocks, []
        return blocks

    def _emit(self, *, is_loose: bool = False) -> None:
        """End the open block, if there is one."""
        if self._lines:
            text = "".join(self._lines)
            self._blocks.append(Block(text, self._join, self._head, is_loose))
            self._lines = []
        self._mode, self._join, self._head = Mode.NONE, Join.NONE, ""

    def _read_lines(self, lines: list[str], *, first_is_formula: bool = True) -> None:
        pending = deque(lines)
        may_be_formula = first_is_formula
        while pending:
            line = pending.popleft()
            if not self._formula:
                self._read(line, may_be_formula)
                may_be_formula = True
                continue
            self._formula.append(line)
            found = self._end_of_formula(line)
            if found is True:
                formula, self._formula, self._after_blank = self._formula, [], False
                self._emit()
                self._lines = [f"{held}\n" for held in formula]
                self._mode = Mode.TEXT
                self._emit()
            elif found is False:
                # Read the lines again: the first one begins no formula.
                pending.extendleft(reversed(self._formula))
                self._formula = []
                self._rereadings += 1
                may_be_formula = False

    def _end_of_formula(self, line: str) -> bool | None:
        """Return whether a line ends the open formula; False if there is none, None if it goes on."""
        _, found, after = line.partition(self._closer)
        if found:
            return AFTER_FORMULA.match(after) is not None
        is_blank = not line.strip(" \t\r")
        if len(self._formula) > MAX_LINES - 1 or (is_blank and not self._is_alone):
            return False
        return None

    def _read(self, line: str, may_be_formula: bool) -> None:
        if not line.strip(" \t\r"):
            self._read_blank(line)
            return
        if self._mode is not Mode.FENCE and may_be_formula and self._begins_formula(line):
            return
        after_blank, self._after_blank = self._after_blank, False
        if self._mode is Mode.FENCE:
            self._lines.append(f"{line}\n")
            if is_end_of_fence(line, self._fence):
                self._emit()
            return
        if self._mode is not Mode.NONE and self._is_continued_by(line, after_blank):
            if self._mode is Mode.TABLE:
                self._add_row(line)
            elif self._mode is not Mode.TEXT or not self._begins_table(line):
                self._lines.append(f"{line}\n")
            return
        self._begin(line, after_blank)

    def _read_blank(self, line: str) -> None:
        self._after_blank = True
        if self._mode in (Mode.TEXT, Mode.TABLE):
            self._emit()
        elif self._mode is not Mode.NONE:
            self._lines.append(f"{line}\n")

    def _begins_formula(self, line: str) -> bool:
        """Hold a line back if it may begin a formula of several lines, until the formula's end is known."""
        found = OPENER.match(line)
        if found is None or self._rereadings >= MAX_REREADINGS:
            return False
        if self._mode is not Mode.NONE and width_of(line) >= self._width:
            return False  # within an item
        self._closer = CLOSERS[found["opener"]]
        if self._closer in found["rest"]:
            return False
        self._is_alone = not found["rest"].strip()
        self._formula = [line]
        return True

    def _is_continued_by(self, line: str, after_blank: bool) -> bool:
        """Return whether a line may belong to the open block. Several blocks may be one block."""
        if self._mode is Mode.INDENTED:
            return width_of(line) >= 4
        width = width_of(line)
        if self._mode in (Mode.LIST, Mode.NOTE) and width >= self._width:
            return True
        if width >= 4:
            return not after_blank
        if FENCE.match(line) or HEADING.match(line):
            return False
        if self._mode is Mode.TEXT and NOTE.match(line):
            return False
        item = ITEM.match(line)
        if self._mode in (Mode.LIST, Mode.NOTE):
            return not (
                after_blank or RULE.match(line) or item or QUOTE.match(line) or NOTE.match(line)
            )
        is_quote = QUOTE.match(line) is not None
        if self._mode is Mode.TABLE:
            return not (item or is_quote or RULE.match(line))
        if is_quote:
            return QUOTE.match(self._lines[0]) is not None
        # Only a list that begins at 1, with a text, follows a paragraph without a blank line.
        is_first = item is not None and item["marker"][:-1] in ("", "1")
        return not (item and is_first and item.end() < len(line.rstrip()))

    def _begins_table(self, line: str) -> bool:
        """Begin a table if a line and the one before it are its head."""
        if DELIMITERS.match(line) is None or QUOTE.match(self._lines[0]):
            return False
        head = f"{self._lines[-1]}{line}\n"
        if not self._is_table(head):
            return False
        self._lines.pop()
        self._emit()
        self._lines, self._head = [head], head
        self._emit()
        self._mode, self._head = Mode.TABLE, head
        return True

    def _add_row(self, line: str) -> None:
        head = self._head
        self._lines, self._join = [f"{line}\n"], Join.ROW
        self._emit()
        self._mode, self._head = Mode.TABLE, head

    def _begin(self, line: str, after_blank: bool) -> None:
        """Begin a block with a line; end the one before."""
        width, mark = width_of(line), self._mark
        item = None if width >= 4 or RULE.match(line) else ITEM.match(line)
        is_next = item is not None and self._mode is Mode.LIST and item["marker"][-1] == mark
        self._emit(is_loose=is_next and after_blank)
        self._lines, self._width = [f"{line}\n"], 4
        if width >= 4:
            self._mode = Mode.INDENTED
        elif item is not None:
            self._mode, self._mark = Mode.LIST, item["marker"][-1]
            self._join = Join.ITEM if is_next else Join.NONE
            self._width = width_of_item(item)
        elif fence := FENCE.match(line):
            self._mode, self._fence = Mode.FENCE, fence["fence"]
        elif NOTE.match(line):
            self._mode = Mode.NOTE
        else:
            self._mode = Mode.TEXT
            if HEADING.match(line) or RULE.match(line):
                self._emit()

    def _peek(self) -> None:
        """End the open block if the beginning of the next line shows that it is not continued."""
        line = self._rest
        if self._mode in (Mode.LIST, Mode.NOTE, Mode.INDENTED):
            if self._after_blank and BEGUN_TEXT.match(line):
                self._emit()
            elif (
                self._mode is Mode.LIST and BEGUN_ITEM.match(line) and width_of(line) < self._width
            ):
                is_next = line.split(maxsplit=1)[0][-1] == self._mark
                self._emit(is_loose=is_next and self._after_blank)
                self._mode = Mode.LIST


def width_of(line: str) -> int:
    """Return the width of a line's indentation, in columns."""
    width = 0
    for char in line:
        if char == " ":
            width += 1
        elif char == "\t":
            width += 4 - width % 4
        else:
            break
    return width


def width_of_item(item: re.Match[str]) -> int:
    """Return the indentation of an item's text, in columns: lines with less of it are not the item's."""
    before = len(item["indent"]) + len(item["marker"])
    space = width_of(" " * (before % 4) + item["space"]) - before % 4
    is_empty = item.end() == len(item.string.rstrip())
    return before + (1 if is_empty or not 1 <= space <= 4 else space)


def is_end_of_fence(line: str, fence: str) -> bool:
    """Return whether a line closes a fence of these marks."""
    text = line.strip(" \t\r")
    is_marks = len(text) >= len(fence) and not text.strip(fence[0])
    return is_marks and width_of(line) < 4
