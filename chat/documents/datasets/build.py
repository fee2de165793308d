"""Makes a DuckDB file of a CSV or Excel file: the function that runs in a sandboxed child.

Memory stays small: cells go from the file through a CSV file of one dialect into DuckDB, which types them there.
"""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import duckdb

from chat.documents.datasets import delimited, headers, names, sheets, summary, types
from chat.documents.datasets.delimited import Dialect
from chat.documents.datasets.errors import TableRefused
from chat.documents.datasets.names import quoted

SAMPLE_ROWS = 200
MAX_CELL = 32_767  # characters, as in Excel; what is beyond is cut off, and counted
MAX_ROW = 1_000_000  # characters
RAW = "raw"
CHECKED = 1_000  # rows between two looks at the limits
LINES = Path("rows.csv")  # in the working directory of the child


@dataclass(slots=True)
class Source:
    """The cells of one table of a file."""

    title: str
    rows: partial[Iterator[list[str]]]
    leans_comma: bool = False  # whether numbers are likely to have a decimal comma
    notes: list[dict[str, Any]] = field(default_factory=list)


@dataclass(slots=True)
class Limits:
    rows: int
    columns: int
    cells: int
    tables: int

    rows_read: int = 0
    cells_read: int = 0

    def check(self, width: int, rows: int) -> None:
        """Raise TableRefused if a table of this size is too much."""
        if width > self.columns:
            raise TableRefused("table_too_many_columns", columns=width, most=self.columns)
        if self.rows_read + rows > self.rows:
            raise TableRefused("table_too_many_rows", most=self.rows)
        if self.cells_read + rows * width > self.cells:
            raise TableRefused("table_too_many_cells", most=self.cells)

    def add(self, width: int, rows: int) -> None:
        self.check(width, rows)
        self.rows_read += rows
        self.cells_read += rows * width


@dataclass(slots=True)
class Shape:
    """The shape of a table, found while its rows are written; `width` grows with rows longer than the first."""

    preamble: int
    head: list[str] | None
    width: int
    written: int = 0  # the width of the rows as written
    rows: int = 0
    ragged: int = 0
    cut: int = 0
    blank: int = 0


def build(argument: dict[str, Any]) -> dict[str, Any]:
    """Write the tables of the file `path` into the new DuckDB file `target`; return what they have.

    `format` is "csv" or "xlsx", `title` the name of the file without its ending. Raises TableRefused.
    """
    target = argument["target"]
    limits = Limits(**argument["limits"])
    config: dict[str, str | bool | int | float | list[str]] = {
        "threads": 1,
        "memory_limit": f"{argument['memory_mb']}MB",
        "temp_directory": "spill",
    }
    with closing(duckdb.connect(target, config=config)) as con:
        found = [
            _load(con, number, source, limits)
            for number, source in enumerate(_sources(argument, limits))
        ]
        tables = [table for table in found if table is not None]
        if not tables:
            raise TableRefused("table_empty")
        distinct = names.distinct(names.table_name(table["title"]) for table in tables)
        for table, name in zip(tables, distinct, strict=True):
            con.execute(f"ALTER TABLE {table.pop('stored')} RENAME TO {quoted(name)}")
            table["name"] = name
    return {"tables": tables}


def _sources(argument: dict[str, Any], limits: Limits) -> Iterator[Source]:
    """Yield the tables of a file: the sheets of a workbook, or the one of a CSV file."""
    path, title = Path(argument["path"]), argument["title"]
    if argument["format"] == "xlsx":
        book = sheets.workbook(path, limits.columns)
        listed = book.sheet_names
        if len(listed) > limits.tables:
            raise TableRefused("table_too_many_sheets", sheets=len(listed), most=limits.tables)
        for name in listed:
            yield Source(title if len(listed) == 1 else name, partial(sheets.rows, book, name))
        return
    dialect = delimited.sniff(path)
    source = Source(title, partial(delimited.rows, path, dialect), dialect.delimiter == ";")
    if not dialect.encoding.startswith("utf"):
        source.notes.append({"code": "encoding", "encoding": dialect.encoding})
    yield source


def _load(
    con: duckdb.DuckDBPyConnection, number: int, source: Source, limits: Limits
) -> dict[str, Any] | None:
    """Make a table of rows; return its description, None if they are all blank."""
    shape = _write(source, limits)
    if shape is None or not shape.rows:
        return None
    limits.add(shape.width, shape.rows)
    heads = names.column_names(shape.head or (), shape.width)
    raw = [f"c{place}" for place in range(shape.width)]
    con.execute(f"CREATE TEMP TABLE {RAW} AS SELECT * FROM {_reader(raw)}")  # noqa: S608 # of our own names
    LINES.unlink()
    found, doubtful = types.readings(con, RAW, raw, leans_comma=source.leans_comma)
    values = [
        f"{types.cast(con, RAW, column, reading)} AS {quoted(name)}"
        for column, reading, name in zip(raw, found, heads, strict=True)
    ]
    stored = f"t{number}"
    con.execute(f"CREATE TABLE {stored} AS SELECT {', '.join(values)} FROM {RAW}")  # noqa: S608
    con.execute(f"DROP TABLE {RAW}")
    columns = [
        {"name": name, "type": reading.type, **({"unit": reading.unit} if reading.unit else {})}
        for name, reading in zip(heads, found, strict=True)
    ]
    return {
        "stored": stored,
        "title": source.title[: names.MAX_NAME],
        "rows": shape.rows,
        "columns": summary.describe(con, stored, columns),
        "preview": summary.preview(con, stored, columns),
        "notes": [*source.notes, *_notes(shape, heads, found, doubtful)],
    }


def _reader(columns: Sequence[str]) -> str:
    """Return the SQL that reads the rows as written."""
    typed = ", ".join(f"'{column}': 'VARCHAR'" for column in columns)
    return (
        f"read_csv('{LINES}', columns = {{{typed}}}, header = false, auto_detect = false, delim = ',',"
        """ quote = '"', escape = '"', nullstr = '', new_line = '\\r\\n', parallel = false,"""
        f" max_line_size = {8 * MAX_ROW})"
    )


def _write(source: Source, limits: Limits) -> Shape | None:
    """Write the rows of a table in one dialect and of one width; return its shape, None if they are all blank."""
    try:
        shape = _written(source.rows(), limits)
    except csv.Error as error:
        if not isinstance(source.rows.args[-1], Dialect) or not source.rows.args[-1].has_quotes:
            raise TableRefused("table_cell_too_long") from error
        # A quotation mark that nothing closes: then all of them are characters as any others.
        path, dialect = source.rows.args
        source.rows = partial(delimited.rows, path, replace(dialect, has_quotes=False))
        source.notes.append({"code": "quotes"})
        return _write(source, limits)
    if shape is not None and shape.width > shape.written:
        shape = _written(source.rows(), limits, width=shape.width)
    return shape


def _written(rows: Iterator[list[str]], limits: Limits, width: int = 0) -> Shape | None:
    """Write rows, as wide as the head or `width`. Raises TableRefused beyond a limit."""
    sample = list(itertools.islice(rows, SAMPLE_ROWS))
    if not any(cell.strip() for row in sample for cell in row):
        if any(cell.strip() for row in rows for cell in row):
            raise TableRefused("table_begins_blank", rows=SAMPLE_ROWS)
        return None
    preamble, has_names = headers.head_of(sample)
    usual = len(_trimmed(sample[preamble]))
    shape = Shape(preamble, sample[preamble] if has_names else None, max(usual, width))
    shape.written = shape.width
    body = itertools.chain(sample[preamble + has_names :], rows)
    with LINES.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(_even(body, shape, usual, limits))
    limits.check(shape.width, shape.rows)
    return shape


def _even(
    rows: Iterable[Sequence[str]], shape: Shape, usual: int, limits: Limits
) -> Iterator[Sequence[str]]:
    """Yield the rows that are not blank, of one width and with cells that fit; count them."""
    for row in rows:
        if len(row) != shape.written or not row[-1]:
            row = _trimmed(row)
            if not row:
                shape.blank += 1
                continue
            shape.width = max(shape.width, len(row))
        if sum(map(len, row)) > MAX_CELL:
            if sum(map(len, row)) > MAX_ROW:
                raise TableRefused("table_row_too_long")
            shape.cut += sum(1 for cell in row if len(cell) > MAX_CELL)
            row = [cell[:MAX_CELL] for cell in row]
        shape.rows += 1
        shape.ragged += len(row) > usual
        if shape.rows % CHECKED == 0:
            limits.check(shape.width, shape.rows)
        yield [*row, *[""] * (shape.written - len(row))] if len(row) < shape.written else row


def _trimmed(row: Sequence[str]) -> Sequence[str]:
    """Return a row without the empty cells at its end."""
    end = len(row)
    while end and not row[end - 1].strip():
        end -= 1
    return row[:end]


def _notes(
    shape: Shape, heads: list[str], found: list[types.Reading], doubtful: list[int]
) -> list[dict[str, Any]]:
    """Return what the reader of a table should know about how it was read, by code."""
    notes: list[dict[str, Any]] = []
    if shape.preamble:
        notes.append({"code": "preamble", "rows": shape.preamble})
    if shape.head is None:
        notes.append({"code": "no_names"})
    counts = {"ragged": shape.ragged, "cut": shape.cut, "blank": shape.blank}
    notes += [{"code": code, "count": count} for code, count in counts.items() if count]
    notes += [{"code": found[at].style, "column": heads[at]} for at in doubtful[:5]]
    return notes
