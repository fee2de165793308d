"""Tables whose rows lose no cell: Markdown leaves out each one beyond those of the heading."""

from __future__ import annotations

import re

from markdown_it.rules_block import StateBlock, table
from markdown_it.rules_block.table import escapedSplit
from markdown_it.token import Token

# Formulas and code, in which a vertical bar ends no cell if the row has too many cells.
# (Each search ends at the next beginning, so that the time is linear.)
WHOLE = re.compile(
    r"(?<!`)(`{1,3})(?!`)[^`]{1,500}+\1(?!`)"
    r"|\\\([^\\]{0,500}+(?:\\[^()][^\\]{0,500}+){0,100}+\\\)"
    r"|\\\[[^\\]{0,500}+(?:\\[^\[\]][^\\]{0,500}+){0,100}+\\\]"
    r"|\$\$[^$]{1,500}+\$\$"
    r"|\$(?=[^\s$])[^$]{1,500}+(?<!\s)\$(?![0-9])"
)
BAR = re.compile(r"(?<!\\)\|")


def whole_table(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    """Find a table, and put the text of surplus cells into the last cell of their row."""
    first = len(state.tokens)
    if not table(state, start, end, silent):
        return False
    cells: list[Token] = []
    for token in state.tokens[first:]:
        if token.type == "inline":
            cells.append(token)
        elif token.type == "tr_close":
            keep_surplus(state, cells)
            cells = []
    return True


def keep_surplus(state: StateBlock, cells: list[Token]) -> None:
    """Fill the cells of one row again if it has more text than cells."""
    assert cells[0].map is not None
    line = cells[0].map[0]
    row = state.src[state.bMarks[line] + state.tShift[line] : state.eMarks[line]].strip()
    most = row.count("|") + 1 - row.startswith("|") - row.endswith("|")
    if most <= len(cells) or len(split(row)) <= len(cells):
        return
    texts = split(WHOLE.sub(lambda found: BAR.sub(r"\\|", found[0]), row))
    last = len(cells) - 1
    texts[last:] = [" | ".join(text for text in texts[last:] if text)]
    for cell, text in zip(cells, texts, strict=False):
        cell.content = text


def split(row: str) -> list[str]:
    """Return the texts of a row's cells, as the parser splits them."""
    texts = escapedSplit(row)
    if texts and texts[0] == "":
        texts.pop(0)
    if texts and texts[-1] == "":
        texts.pop()
    return [text.strip() for text in texts]
