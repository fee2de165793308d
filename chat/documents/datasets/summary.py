"""Describes the columns of a table: range, empty and distinct values, the commonest ones. Runs in a sandboxed child."""

from __future__ import annotations

import datetime
import decimal
import math
from typing import TYPE_CHECKING, Any

from chat.documents.datasets.names import quoted

if TYPE_CHECKING:
    import duckdb

PREVIEW_ROWS = 50
PREVIEW_COLUMNS = 50
PREVIEW_CELL = 200  # characters
TOP = 5
MAX_TOP_COLUMNS = 100  # whose commonest values are counted
BATCH = 50  # columns of one statement
ORDERED = {"integer", "number", "date", "datetime", "time"}


def describe(
    con: duckdb.DuckDBPyConnection, table: str, columns: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Return the columns of a table with what they have."""
    described: list[dict[str, Any]] = []
    for start in range(0, len(columns), BATCH):
        batch = columns[start : start + BATCH]
        selected: list[str] = []
        for column in batch:
            name = quoted(column["name"])
            selected += [f"count(*) - count({name})", f"approx_count_distinct({name})"]
            is_ordered = column["type"] in ORDERED
            selected += [f"min({name})", f"max({name})"] if is_ordered else ["NULL", "NULL"]
            is_number = column["type"] in ("integer", "number")
            selected.append(f"avg({name})" if is_number else "NULL")
        row = con.execute(f"SELECT {', '.join(selected)} FROM {table}").fetchone()  # noqa: S608 # of quoted names
        assert row is not None
        for number, column in enumerate(batch):
            empty, distinct, least, most, mean = row[5 * number : 5 * number + 5]
            one = {**column, "empty": empty, "distinct": distinct}
            if least is not None:
                one |= {"min": plain(least), "max": plain(most)}
            if mean is not None:
                one["mean"] = plain(float(f"{mean:.6g}"))
            described.append(one)
    for column in described[:MAX_TOP_COLUMNS]:
        if column["type"] in ("text", "boolean"):
            name = quoted(column["name"])
            top = con.execute(
                f"SELECT {name}, count(*) AS n FROM {table} WHERE {name} IS NOT NULL GROUP BY 1 ORDER BY n DESC, 1 LIMIT {TOP}"  # noqa: S608
            ).fetchall()
            if top and (top[0][1] > 1 or len(top) < TOP):
                column["top"] = [[shortened(value), count] for value, count in top]
    return described


def preview(
    con: duckdb.DuckDBPyConnection, table: str, columns: list[dict[str, Any]]
) -> list[list[Any]]:
    """Return the first rows of a table, of its first columns."""
    shown = ", ".join(quoted(column["name"]) for column in columns[:PREVIEW_COLUMNS])
    rows = con.execute(f"SELECT {shown} FROM {table} LIMIT {PREVIEW_ROWS}").fetchall()  # noqa: S608
    return [[shortened(value) for value in row] for row in rows]


def shortened(value: Any) -> Any:
    """Return a value as JSON has it, a long text cut."""
    value = plain(value)
    if isinstance(value, str) and len(value) > PREVIEW_CELL:
        return value[: PREVIEW_CELL - 1] + "…"
    return value


def plain(value: Any) -> Any:
    """Return a value of DuckDB as JSON has it: numbers, texts, booleans and nothing."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, str):
        return value.replace("\0", "")
    if isinstance(value, decimal.Decimal):
        if not value.is_finite():
            return str(value)
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, datetime.datetime):
        return value.isoformat(" ", "seconds")
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).hex()
    return str(value).replace("\0", "")
