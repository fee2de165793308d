"""Parser of PDF: the text of each page, in paragraphs, by PDFium."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import closing
from typing import Any

import pypdfium2
from pypdfium2 import PdfiumError

from chat.documents.parsing.errors import ParseError
from chat.documents.parsing.pieces import pieces

Block = dict[str, Any]

PASSWORD_ERROR = 4  # FPDF_ERR_PASSWORD
PAGE_CHARACTERS = 200_000
SHORT = 0.7  # of the longest line: a line that ends a paragraph
SENTENCE_END = re.compile(r"[.!?:;。؟…]['\"»”)\]]*$")
HYPHENATED = re.compile(r"(\w)[-\u00ad\u2010\ufffe\x02]\n(?=[a-zà-ÿа-я])")


def parse(path: str, options: Mapping[str, Any]) -> Iterator[Block]:
    """Yield the paragraphs of a PDF with their pages.

    Option `pages`: the most that it may have. Raises ParseError `encrypted`, `broken_file`, `too_many_pages`, and
    `no_text` for pages that are pictures alone.
    """
    try:
        document: Any = pypdfium2.PdfDocument(path)  # type: ignore[no-untyped-call]
    except PdfiumError as error:
        is_locked = getattr(error, "err_code", None) == PASSWORD_ERROR or "assword" in str(error)
        raise ParseError("encrypted" if is_locked else "broken_file") from error
    with closing(document):
        count = len(document)
        if count > options["pages"]:
            raise ParseError("too_many_pages", pages=count)
        if count == 0:
            raise ParseError("broken_file")
        empty = broken = 0
        for number in range(1, count + 1):
            try:
                text = _text(document, number - 1)
            except PdfiumError:
                broken += 1
                continue
            empty += not text.strip()
            for paragraph in paragraphs(text):
                for piece in pieces(paragraph):
                    yield {"kind": "paragraph", "page": number, "text": piece}
            yield {"kind": "progress", "percent": 100 * number // count}
    if empty + broken == count:
        raise ParseError("no_text" if empty else "broken_file")
    notes = {"pages": count, "pages_without_text": empty, "broken_pages": broken}
    yield {"kind": "notes", "notes": {name: value for name, value in notes.items() if value}}


def _text(document: Any, index: int) -> str:
    with closing(document[index]) as page, closing(page.get_textpage()) as textpage:
        most = min(textpage.count_chars(), PAGE_CHARACTERS)
        text: str = textpage.get_text_range(0, most) if most > 0 else ""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def paragraphs(text: str) -> Iterator[str]:
    """Yield the paragraphs of a page, whose lines PDF does not join: one ends at a blank line or a short last line."""
    lines = HYPHENATED.sub(r"\1", text).split("\n")
    longest = max(map(len, lines), default=0)
    current: list[str] = []
    for line in lines:
        stripped = line.strip()
        if stripped:
            current.append(stripped)
        is_last = SENTENCE_END.search(stripped) and len(stripped) < SHORT * longest
        if current and (not stripped or is_last):
            yield " ".join(current)
            current = []
    if current:
        yield " ".join(current)
