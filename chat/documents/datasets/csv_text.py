"""CSV files that Parley writes."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

# As in CSV files of the ledger.
FORMULA_STARTS = (
    "=", "+", "-", "@", "\N{FULLWIDTH EQUALS SIGN}", "\N{FULLWIDTH PLUS SIGN}",
    "\N{FULLWIDTH HYPHEN-MINUS}", "\N{FULLWIDTH COMMERCIAL AT}",
)  # fmt: skip


def to_csv(columns: Iterable[Mapping[str, Any]], rows: Iterable[Sequence[Any]]) -> str:
    """Return a result as CSV whose texts no spreadsheet takes for formulas."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\r\n")
    writer.writerow([harmless(column["name"]) for column in columns])
    writer.writerows([harmless(value) for value in row] for row in rows)
    return file.getvalue()


def harmless(value: Any) -> Any:
    """Return a cell for a CSV file: a text that a spreadsheet would run as a formula begins with an apostrophe."""
    if isinstance(value, str) and (
        value.startswith(("\t", "\r")) or value.lstrip().startswith(FORMULA_STARTS)
    ):
        return f"'{value}"
    return value
