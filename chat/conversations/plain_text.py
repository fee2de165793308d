"""The words of a Markdown text without its marks, for one line: snippets of a search, names of chats."""

from __future__ import annotations

import re

# Of whole lines: fences of code, rules, rows between the head and the body of a table.
_LINES = re.compile(
    r"^[ \t]*(?:(?:```|~~~)[^\n]*|([-*_])(?:[ \t]*\1){2,}[ \t]*|\|?[ \t]*:?-{3,}[-:| \t]*)$",
    re.MULTILINE,
)
# At the beginning of a line: quotations, bullets, headings.
_BEGINNINGS = re.compile(r"^[ \t]*(?:>[ \t]?)*(?:[-*+][ \t]+|#{1,6}[ \t]+)?", re.MULTILINE)
_CELLS = re.compile(r"^\|(.*)\|[ \t]*$", re.MULTILINE)
_LINKS = re.compile(r"!?\[([^\[\]\n]*)\]\([^()\s]*(?:[ \t]+\"[^\"\n]*\")?\)")
# In pairs around words, so that `2 * 3 * 4`, `*.py` and `snake_case` stay as they are.
_PAIRS = tuple(
    re.compile(rf"(?<![\w\\]){mark}(?=\S)((?:(?!{mark}).)+?)(?<=\S){mark}(?!\w)")
    for mark in (r"\*\*\*", r"\*\*", r"~~", r"\*", "``", "`")
)


def plain(text: str) -> str:
    """Return the words of a Markdown text in one line."""
    text = _LINES.sub("", text)
    text = _BEGINNINGS.sub("", text)
    text = _CELLS.sub(lambda row: row[1].replace("|", " "), text)
    text = _LINKS.sub(r"\1", text)
    for pair in _PAIRS:
        text = pair.sub(r"\1", text)
    return " ".join(text.split())
