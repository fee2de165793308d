"""Runs a query over tables: the function that runs in a sandboxed child.

DuckDB opens the files read-only, and then closes its doors: no files, network, extensions or settings. Time and
memory are limited twice, by the engine and by the child's own limits.
"""

from __future__ import annotations

from contextlib import closing
from typing import Any

import duckdb

from chat.documents.datasets import statements
from chat.documents.datasets.csv_text import to_csv
from chat.documents.datasets.errors import QueryRefused
from chat.documents.datasets.names import quoted
from chat.documents.datasets.summary import PREVIEW_CELL, plain

BATCH = 500  # rows fetched at once

TYPES = {
    "BOOLEAN": "boolean", "DATE": "date", "TIME": "time", "VARCHAR": "text", "DOUBLE": "number", "FLOAT": "number",
    "TINYINT": "integer", "SMALLINT": "integer", "INTEGER": "integer", "BIGINT": "integer", "HUGEINT": "integer",
    "UTINYINT": "integer", "USMALLINT": "integer", "UINTEGER": "integer", "UBIGINT": "integer", "UHUGEINT": "integer",
    "BIGNUM": "integer", "NULL": "text",
}  # fmt: skip

Config = dict[str, str | bool | int | float | list[str]]

CLOSED: Config = {
    "threads": 1,
    "temp_directory": "",
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
    "allow_community_extensions": False,
    "allow_unsigned_extensions": False,
    "python_enable_replacements": False,
}


def run(argument: dict[str, Any]) -> dict[str, Any]:
    """Run `sql` over `tables` and return columns and rows; raises QueryRefused with a sentence for the model.

    `tables` are {name, path, stored}: the name in the query, the file and the table's name in it. `rows` and
    `bytes` limit the result: beyond them it is cut, and has `more`. With `csv` the result as CSV is added, and the
    rows are only the first `preview`.
    """
    config: Config = {**CLOSED, "memory_limit": f"{argument['memory_mb']}MB"}
    with closing(duckdb.connect(":memory:", config=config)) as con:
        _open(con, argument["tables"])
        statements.check(con, argument["sql"], [table["name"] for table in argument["tables"]])
        try:
            return _result(con, argument)
        except duckdb.OutOfMemoryException as error:
            raise QueryRefused(
                "The query needs more memory than it may have. Filter or aggregate the rows first, and join less."
            ) from error
        except duckdb.Error as error:
            raise QueryRefused(statements.sentence(error)) from error


def _open(con: duckdb.DuckDBPyConnection, tables: list[dict[str, Any]]) -> None:
    """Make the tables readable by their names, then close the engine."""
    paths = list(dict.fromkeys(table["path"] for table in tables))
    for number, path in enumerate(paths):
        con.execute(f"ATTACH '{path.replace(chr(39), chr(39) * 2)}' AS file_{number} (READ_ONLY)")
    for table in tables:
        file = f"file_{paths.index(table['path'])}"
        con.execute(
            f"CREATE TEMP VIEW {quoted(table['name'])} AS SELECT * FROM {file}.main.{quoted(table['stored'])}"  # noqa: S608 # of quoted names
        )
    con.execute("SET enable_external_access = false")
    con.execute("SET lock_configuration = true")


def _result(con: duckdb.DuckDBPyConnection, argument: dict[str, Any]) -> dict[str, Any]:
    cursor = con.execute(argument["sql"])
    columns = [
        {"name": str(one[0])[:200], "type": type_of(str(one[1]))}
        for one in cursor.description or ()
    ]
    rows: list[list[Any]] = []
    size, more = 0, False
    while not more and (batch := cursor.fetchmany(BATCH)):
        for row in batch:
            values = [plain(value) for value in row]
            size += sum(len(value) if isinstance(value, str) else 12 for value in values)
            if len(rows) == argument["rows"] or size > argument["bytes"]:
                more = True
                break
            rows.append(values)
    if more and not rows:
        raise QueryRefused(
            "One row of the result is larger than a whole result may be. Select fewer columns."
        )
    result: dict[str, Any] = {"columns": columns, "total": len(rows), "more": more, "rows": rows}
    if argument.get("csv"):
        result["csv"] = to_csv(columns, rows)
        result["rows"] = [
            [_cut(value) for value in row] for row in rows[: argument.get("preview", len(rows))]
        ]
    return result


def type_of(name: str) -> str:
    """Return the type of a column as pages and charts know it."""
    if name.startswith("DECIMAL"):
        return "number"
    if name.startswith("TIMESTAMP"):
        return "datetime"
    return TYPES.get(name, "text")


def _cut(value: Any) -> Any:
    long = isinstance(value, str) and len(value) > PREVIEW_CELL
    return value[: PREVIEW_CELL - 1] + "…" if long else value
