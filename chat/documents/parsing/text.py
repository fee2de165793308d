"""Parser of plain text: a paragraph ends at a blank line; lines without any are taken together."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from chat.documents.parsing import encodings
from chat.documents.parsing.errors import ParseError
from chat.documents.parsing.pieces import pieces

Block = dict[str, Any]

LINE = 65_536  # characters that are read at once
PARAGRAPH = 2_000  # characters after which a paragraph ends with its line


def lines(path: str, options: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of a text without their ends; a very long line comes in parts."""
    encoding = options.get("encoding") or "utf-8-sig"
    with encodings.opened(Path(path), options.get("member") or "") as raw:
        file = io.TextIOWrapper(raw, encoding=encoding, errors="replace")
        while line := file.readline(LINE):
            yield line.rstrip("\n")


def parse(path: str, options: Mapping[str, Any]) -> Iterator[Block]:
    """Yield the paragraphs of a text. Raises ParseError `empty`."""
    found = False
    for paragraph in _paragraphs(lines(path, options)):
        for piece in pieces(paragraph):
            found = True
            yield {"kind": "paragraph", "text": piece}
    if not found:
        raise ParseError("empty")


def _paragraphs(found: Iterator[str]) -> Iterator[str]:
    current: list[str] = []
    length = 0
    for line in found:
        if line.strip():
            current.append(line.rstrip())
            length += len(line)
        if current and (not line.strip() or length > PARAGRAPH):
            yield "\n".join(current)
            current, length = [], 0
    if current:
        yield "\n".join(current)
