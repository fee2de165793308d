"""Finds the head of a table: the row with the names of its columns. Runs in a sandboxed child."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from chat.documents.datasets import types

MAX_PREAMBLE = 20  # rows before the head: titles, dates of the export
TYPED = re.compile(
    f"(?:{types.POINT})|(?:{types.COMMA})|(?:{types.DATE_LIKE.pattern})|(?:{types.TIME})"
)
YEAR = re.compile(r"(?:1[89]|20)\d\d")


def head_of(sample: Sequence[Sequence[str]]) -> tuple[int, bool]:
    """Return the number of rows before the table, and whether its first row has the names of its columns."""
    widths = Counter(_filled(row) for row in sample if _filled(row))
    usual = max(widths, key=lambda width: (widths[width], width), default=0)
    first = next(
        (
            number
            for number, row in enumerate(sample[: MAX_PREAMBLE + 1])
            if _filled(row) > usual // 2
        ),
        0,
    )
    return first, _has_names(sample[first], sample[first + 1 :])


def _filled(row: Sequence[str]) -> int:
    return sum(1 for cell in row if cell.strip())


def _has_names(row: Sequence[str], below: Sequence[Sequence[str]]) -> bool:
    """Return whether a row has names: texts, or years over what are none. A file of texts alone has names, too."""
    cells = [cell.strip() for cell in row]
    if not any(cells) or not below:
        return any(cells) and not any(TYPED.fullmatch(cell) for cell in cells if cell)
    for place, cell in enumerate(cells):
        if not cell or not TYPED.fullmatch(cell):
            continue
        column = [other[place].strip() for other in below if place < len(other)]
        if not YEAR.fullmatch(cell) or all(YEAR.fullmatch(one) for one in column if one):
            return False
    return True
