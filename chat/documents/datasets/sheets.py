"""Reads the cells of an Excel file: values only, so that a formula is what it last gave. Runs in a sandboxed child."""

from __future__ import annotations

import datetime
import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import python_calamine

from chat.documents.datasets.errors import TableRefused

MAX_EXPANDED = 400_000_000  # bytes of all parts of the file
MAX_RATIO = 200  # of a part's size to its compressed one, above MIN_EXPANDED
MIN_EXPANDED = 20_000_000
MAX_PARTS = 5_000


# Cells lie by their references, and the library makes room for all between them: one far cell, or one beyond what
# Excel has, would take all memory and time.
SHEET = re.compile(r"xl/worksheets/[^/]+\.xml", re.IGNORECASE)
IMPOSSIBLE = re.compile(rb"""\sr\s*=\s*["'](?:[A-Za-z]{4}|[A-Za-z]{0,3}\d{8})""")
FAR = re.compile(rb"""\sr\s*=\s*["']([A-Za-z]{3})\d+["'][^>]*(?<!/)>""")  # with a content
CHUNK = 1 << 20
OVERLAP = 200  # bytes of a chunk that are looked at again with the next one


def workbook(path: Path, columns: int) -> python_calamine.CalamineWorkbook:
    """Open an Excel file. Raises TableRefused for one that is damaged, encrypted, too wide, or a zip bomb."""
    try:
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        with path.open("rb") as file:
            # An encrypted workbook is a compound file, as those of Excel 97 are.
            is_compound = file.read(8) == bytes.fromhex("d0cf11e0a1b11ae1")
        raise TableRefused("table_encrypted" if is_compound else "table_damaged") from error
    expanded = sum(part.file_size for part in parts)
    packed = sum(part.compress_size for part in parts)
    if (
        len(parts) > MAX_PARTS
        or expanded > MAX_EXPANDED
        or expanded > max(MIN_EXPANDED, MAX_RATIO * packed)
    ):
        raise TableRefused("table_expands_too_much")
    _check_references(path, columns)
    try:
        return python_calamine.CalamineWorkbook.from_path(path)
    except python_calamine.PasswordError as error:
        raise TableRefused("table_encrypted") from error
    except (python_calamine.CalamineError, OSError) as error:
        raise TableRefused("table_damaged") from error


def _check_references(path: Path, most: int) -> None:
    """Raise TableRefused for cells that no sheet has, and for those beyond so many columns."""
    far: set[bytes] = set()
    try:
        with zipfile.ZipFile(path) as archive:
            for name in filter(SHEET.fullmatch, archive.namelist()):
                with archive.open(name) as part:
                    end = b""
                    while chunk := part.read(CHUNK):
                        if IMPOSSIBLE.search(text := end + chunk):
                            raise TableRefused("table_damaged")
                        far.update(FAR.findall(text))
                        end = text[-OVERLAP:]
    except (zipfile.BadZipFile, OSError, ValueError, EOFError, zlib.error) as error:
        raise TableRefused("table_damaged") from error
    except (RuntimeError, NotImplementedError) as error:  # encrypted, or packed in another way
        raise TableRefused("table_encrypted") from error
    width = max(map(_number_of, far), default=0)
    if width > most:
        raise TableRefused("table_too_many_columns", columns=width, most=most)


def _number_of(column: bytes) -> int:
    """Return the number of a column, from 1, by its letters."""
    number = 0
    for letter in column.upper():
        number = number * 26 + letter - ord("A") + 1
    return number


def rows(book: python_calamine.CalamineWorkbook, name: str) -> Iterator[list[str]]:
    """Yield the rows of a sheet as texts that `types` reads without doubt: ISO dates, numbers with a point."""
    try:
        sheet = book.get_sheet_by_name(name)
    except python_calamine.CalamineError as error:
        raise TableRefused("table_damaged") from error
    if sheet.total_height == 0:
        return
    for row in sheet.iter_rows():
        yield [text_of(cell) for cell in row]


def text_of(cell: Any) -> str:
    """Return a cell's value as text."""
    if isinstance(cell, bool):
        return "true" if cell else "false"
    if isinstance(cell, float):
        return str(int(cell)) if cell.is_integer() and abs(cell) < 1e15 else repr(cell)
    if isinstance(cell, datetime.datetime):
        is_day = cell.time() == datetime.time()
        return cell.date().isoformat() if is_day else cell.isoformat(" ", "seconds")
    if isinstance(cell, datetime.timedelta):
        return str(cell)
    if isinstance(cell, datetime.date | datetime.time):
        return cell.isoformat()
    return str(cell).replace("\0", "")
