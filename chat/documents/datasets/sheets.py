"""Reads the cells of an Excel file: values only, so that a formula is what it last gave. Runs in a sandboxed child."""

from __future__ import annotations

import datetime
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import python_calamine

from chat.documents.datasets.errors import TableRefused

MAX_EXPANDED = 400_000_000  # bytes of all parts of the file
MAX_RATIO = 200  # of a part's size to its compressed one, above MIN_EXPANDED
MIN_EXPANDED = 20_000_000
MAX_PARTS = 5_000


def workbook(path: Path) -> python_calamine.CalamineWorkbook:
    """Open an Excel file. Raises TableRefused for one that is damaged, encrypted, or a zip bomb."""
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
    try:
        return python_calamine.CalamineWorkbook.from_path(path)
    except python_calamine.PasswordError as error:
        raise TableRefused("table_encrypted") from error
    except (python_calamine.CalamineError, OSError) as error:
        raise TableRefused("table_damaged") from error


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
