"""Decides which SQL is run: one SELECT over the tables by name, with functions that only compute.

The engine itself is closed to files, network and settings (queries.py); this is the second lock, and gives the
model a sentence that says what to write instead. Runs in a sandboxed child.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

import duckdb

from chat.documents.datasets.errors import QueryRefused

MAX_LENGTH = 5_000  # characters
ONLY_SELECT = "Only one SELECT statement is allowed. Write the query as a single SELECT, without PIVOT, SET, COPY or other commands."

TABLE_FUNCTIONS = {"range", "generate_series", "unnest"}
# Functions that read the system, its settings or another statement, or that wait or write.
REFUSED = re.compile(
    r"(?:read_|write_|pragma_|duckdb_|pg_|set_|has_|json_execute|json_serialize|json_deserialize|sniff_|current_|glob$|query|"
    r"getenv|getvariable|nextval|currval|setseed|version$|txid_|in_search_path|col_description|obj_description|"
    r"shobj_description|inet_|sleep|checkpoint|force_checkpoint|which_secret|import_|export_|parquet_|add_parquet|"
    r"copy_|file_|icu_|sql_auto|summary$|test_|repeat_row|seq_scan|index_scan|arrow_|pandas_|python_|from_substrait|get_substrait)"
)
CLOCK = {
    "current_date",
    "current_time",
    "current_timestamp",
    "current_localtime",
    "current_localtimestamp",
}


def check(con: duckdb.DuckDBPyConnection, sql: str, tables: Iterable[str]) -> None:
    """Raise QueryRefused, with a sentence for the model, for SQL that is not run."""
    if len(sql) > MAX_LENGTH:
        raise QueryRefused(
            f"The query has more than {MAX_LENGTH:,} characters. Write a shorter one."
        )
    if not sql.strip():
        raise QueryRefused("The query is empty.")
    try:
        found = con.extract_statements(sql)
    except duckdb.Error as error:
        raise QueryRefused(sentence(error)) from error
    if len(found) != 1 or found[0].type != duckdb.StatementType.SELECT:
        raise QueryRefused(ONLY_SELECT)
    row = con.execute("SELECT json_serialize_sql(?)", [sql]).fetchone()
    assert row is not None
    tree = json.loads(row[0])
    if tree["error"]:
        raise QueryRefused(ONLY_SELECT)
    nodes = list(_nodes(tree))
    known = {name.casefold() for name in tables}
    known |= {str(one["key"]).casefold() for node in nodes for one in _ctes(node)}
    for node in nodes:
        _check_node(node, known, tables)


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    """Yield all objects of a syntax tree, however deep."""
    waiting = [tree]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            yield one
            waiting.extend(one.values())
        elif isinstance(one, list):
            waiting.extend(one)


def _ctes(node: dict[str, Any]) -> list[dict[str, Any]]:
    ctes = node.get("cte_map")
    return ctes.get("map", []) if isinstance(ctes, dict) else []


def _check_node(node: dict[str, Any], known: set[str], tables: Iterable[str]) -> None:
    kind = node.get("type")
    if kind == "BASE_TABLE":
        name = str(node.get("table_name", ""))
        if node.get("schema_name") or node.get("catalog_name") or name.casefold() not in known:
            raise QueryRefused(
                f'There is no table "{name[:80]}". The tables are: {listed(tables)}.'
            )
    elif kind == "TABLE_FUNCTION":
        function = node.get("function") or {}
        name = str(function.get("function_name", "")).casefold()
        if name not in TABLE_FUNCTIONS:
            raise QueryRefused(
                f"The table function {name[:80]} is not available. The tables are: {listed(tables)}."
            )
    elif kind in ("SHOW_REF", "DELIM_GET", "COLUMN_DATA"):
        raise QueryRefused(f"{ONLY_SELECT} The columns of the tables are in your instructions.")
    name = str(node.get("function_name", "")).casefold()
    if name and name not in TABLE_FUNCTIONS and name not in CLOCK and REFUSED.match(name):
        raise QueryRefused(f"The function {name[:80]} is not available.")


def listed(names: Iterable[str]) -> str:
    """Return names in a sentence; of many tables the first ones."""
    names = list(names)
    return ", ".join(names[:20]) + (", …" if len(names) > 20 else "")


def sentence(error: duckdb.Error) -> str:
    """Return what the engine says of a faulty query, without the query itself."""
    text = str(error).split("\n\nLINE ", 1)[0].split("\nLINE ", 1)[0]
    return " ".join(text.split())[:500]
