"""Parser of Word documents (DOCX): headings, paragraphs and tables, in their order."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any

import docx
from docx.opc.exceptions import OpcError
from docx.table import Table
from docx.text.paragraph import Paragraph
from lxml.etree import LxmlError

from chat.documents.parsing.errors import ParseError
from chat.documents.parsing.headings import Headings
from chat.documents.parsing.pieces import pieces

Block = dict[str, Any]

HEADING = re.compile(
    r"heading\s*([1-9])", re.IGNORECASE
)  # the ids of styles are English in all languages
TITLES = ("title", "titel")
HEADING_LENGTH = 300
CELL_LENGTH = 2_000
DAMAGED = (
    OpcError,
    LxmlError,
    zipfile.BadZipFile,
    KeyError,
    ValueError,
    AttributeError,
    IndexError,
    EOFError,
)


def parse(path: str, options: Mapping[str, Any]) -> Iterator[Block]:
    """Yield the parts of a document. Raises ParseError `broken_file` and `no_text`."""
    try:
        document = docx.Document(path)
        parts = list(document.iter_inner_content())
    except DAMAGED as error:
        raise ParseError("broken_file") from error
    headings = Headings()
    found = False
    for number, part in enumerate(parts, start=1):
        if number % 200 == 0:
            yield {"kind": "progress", "percent": 100 * number // len(parts)}
        try:
            blocks = _table(part) if isinstance(part, Table) else _paragraph(part, headings)
        except DAMAGED as error:
            raise ParseError("broken_file") from error
        for block in blocks:
            found = True
            yield block if block["kind"] == "heading" else block | {"headings": headings.path}
    if not found:
        raise ParseError("no_text")


def _paragraph(paragraph: Paragraph, headings: Headings) -> list[Block]:
    text = paragraph.text.strip()
    if not text:
        return []
    if level := _level(paragraph):
        return [headings.block(level, " ".join(text.split())[:HEADING_LENGTH])]
    return [{"kind": "paragraph", "text": piece} for piece in pieces(text)]


def _level(paragraph: Paragraph) -> int:
    """Return the level of a heading, 0 of another paragraph."""
    style = paragraph.style
    for name in (style.style_id, style.name) if style is not None else ():
        if found := HEADING.match(name or ""):
            return int(found[1])
        if (name or "").lower() in TITLES:
            return 1
    return 0


def _table(table: Table) -> list[Block]:
    lines = []
    for row in table.rows:
        cells: list[str] = []
        last = None
        for cell in row.cells:
            if cell._tc is last:  # a merged cell comes once for each of its columns
                continue
            last = cell._tc
            cells.append(" ".join(cell.text.split())[:CELL_LENGTH])
        if any(cells):
            lines.append(" | ".join(cells))
    return [{"kind": "table", "text": piece} for piece in pieces("\n".join(lines))]
