"""Queries over tables: what they return, and every way out that the engine and the check close."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest

from chat.documents.datasets import build, queries, statements
from chat.documents.datasets.errors import QueryRefused

SALES = "shop,day,amount\nNorth,2024-01-05,10.50\nSouth,2024-02-01,20\nNorth,2024-02-09,=1+1\n"

ENGINE_REFUSES = [
    "SELECT * FROM read_csv('/etc/passwd')",
    "SELECT * FROM read_text('/etc/passwd')",
    "SELECT * FROM read_blob('/etc/passwd')",
    "SELECT * FROM read_parquet('/etc/passwd')",
    "SELECT * FROM read_json_auto('/etc/passwd')",
    "SELECT * FROM '/etc/passwd'",
    "SELECT * FROM 'https://example.org/data.csv'",
    "SELECT * FROM glob('/*')",
    "SELECT * FROM sniff_csv('/etc/passwd')",
    "SELECT (SELECT content FROM read_text('/etc/passwd')) FROM sales",
    "WITH a AS (SELECT * FROM read_text('/etc/hostname')) SELECT * FROM a",
    "SELECT * FROM parquet_metadata('/etc/passwd')",
    "SELECT * FROM sqlite_scan('/tmp/a.db', 'a')",
    "COPY sales TO '/tmp/parley-out.csv'",
    "COPY (SELECT 1) TO '/dev/stdout'",
    "EXPORT DATABASE '/tmp/parley-out'",
    "IMPORT DATABASE '/tmp/parley-out'",
    "ATTACH '/tmp/parley-out.db' AS other",
    "INSTALL httpfs",
    "LOAD httpfs",
    "SET enable_external_access = true",
    "SET memory_limit = '64GB'",
    "RESET ALL",
]
WAYS_OUT = [
    *ENGINE_REFUSES,
    "DETACH file_0",
    "USE file_0",
    "PRAGMA database_list",
    "CALL duckdb_settings()",
    "CREATE SECRET (TYPE s3, KEY_ID 'a', SECRET 'b')",
    "CREATE TABLE a AS SELECT 1",
    "CREATE MACRO a(x) AS x",
    "INSERT INTO sales VALUES (1, 2, 3)",
    "DELETE FROM sales",
    "DROP VIEW sales",
    "UPDATE sales SET shop = 'x'",
    "CHECKPOINT",
    "VACUUM",
    "BEGIN",
    "SELECT 1; SELECT 2",
    "SELECT 1; COPY sales TO '/tmp/parley-out.csv'",
    "EXPLAIN ANALYZE SELECT 1",
    "PREPARE a AS SELECT 1",
    "EXECUTE a",
    "SELECT getenv('HOME')",
    "SELECT getvariable('a')",
    "SELECT current_setting('temp_directory')",
    "SELECT * FROM duckdb_settings()",
    "SELECT * FROM duckdb_secrets()",
    "SELECT * FROM duckdb_databases()",
    "SELECT * FROM pragma_database_list()",
    "SELECT * FROM pragma_table_info('sales')",
    "SELECT * FROM information_schema.tables",
    "SELECT * FROM pg_catalog.pg_class",
    "SELECT * FROM pg_class",
    "SELECT * FROM sqlite_master",
    "SELECT * FROM duckdb_tables",
    "SELECT * FROM file_0.main.sales",
    "SELECT * FROM query('SELECT 1')",
    "SELECT * FROM query_table('sales')",
    "SELECT json_execute_serialized_sql('{}')",
    "SELECT * FROM json_execute_serialized_sql(json_serialize_sql('SELECT 1'))",
    "SHOW TABLES",
    "DESCRIBE sales",
    "SELECT * FROM (SHOW ALL TABLES)",
    "FROM (SUMMARIZE sales)",
    "PIVOT sales ON shop USING sum(amount)",
    "SELECT nextval('a')",
    "SELECT write_log('x')",
    "SELECT currval('a')",
    "SELECT * FROM other_users_table",
    "SELECT txid_current()",
    "SELECT version()",
]


@pytest.fixture(scope="module")
def sales(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sales")
    source, target = folder / "sales.csv", folder / "sales.duckdb"
    source.write_text(SALES)
    limits = {"rows": 100, "columns": 10, "cells": 1_000, "tables": 5}
    with contextlib.chdir(folder):
        build.build(
            {
                "path": str(source), "target": str(target), "format": "csv", "title": "Sales",
                "memory_mb": 128, "limits": limits,
            }
        )  # fmt: skip
    return target


def run(file: Path, sql: str, **others) -> dict[str, Any]:
    tables = [{"name": "sales", "stored": "sales", "path": str(file)}]
    return queries.run(
        {"tables": tables, "sql": sql, "rows": 50, "bytes": 100_000, "memory_mb": 128, **others}
    )


def test_query_returns_typed_columns(sales):
    found = run(
        sales,
        'WITH n AS (SELECT shop, min("day") AS first, count(*) AS c FROM sales GROUP BY ALL) SELECT * FROM n ORDER BY c DESC',
    )
    assert [column["type"] for column in found["columns"]] == ["text", "date", "integer"]
    assert found["rows"] == [["North", "2024-01-05", 2], ["South", "2024-02-01", 1]]
    assert (found["total"], found["more"]) == (2, False)


def test_csv_escapes_formulas(sales):
    found = run(sales, "SELECT amount, '@x' AS \"=a\", -5 AS n FROM sales", csv=True, preview=1)
    assert found["csv"].splitlines() == [
        "amount,'=a,n", "10.50,'@x,-5", "20,'@x,-5", "'=1+1,'@x,-5",
    ]  # fmt: skip
    assert len(found["rows"]) == 1


def test_large_result_is_cut(sales):
    found = run(sales, "SELECT range AS n, repeat('x', 1000) AS t FROM range(1000)")
    assert found["more"]
    assert len(found["rows"]) == 50


def test_values_become_json(sales):
    sql = "SELECT 'a' || chr(0) AS zero, 'nan'::DOUBLE AS nan, [1, 2] AS list, '\\xAA'::BLOB AS blob, 1.5::DECIMAL(9, 2) AS d, TIME '10:00' AS t, INTERVAL 1 DAY AS i"
    assert run(sales, sql)["rows"] == [
        ["a", "nan", "[1, 2]", "aa", 1.5, "10:00:00", "1 day, 0:00:00"]
    ]


def test_each_way_out_is_refused(sales):
    opened = [sql for sql in WAYS_OUT if not is_refused(sales, sql)]
    assert opened == []
    assert not list(Path("/tmp").glob("parley-out*"))  # noqa: S108


def test_engine_alone_keeps_files_closed(sales, monkeypatch):
    """The check of the statement is the second lock: the first one holds without it."""
    monkeypatch.setattr(statements, "check", lambda *arguments: None)
    opened = [sql for sql in ENGINE_REFUSES if not is_refused(sales, sql)]
    assert opened == []
    assert not list(Path("/tmp").glob("parley-out*"))  # noqa: S108


def is_refused(file: Path, sql: str) -> bool:
    try:
        run(file, sql)
    except QueryRefused:
        return True
    return False


def test_faulty_query_names_the_fault(sales):
    with pytest.raises(QueryRefused, match="amont"):
        run(sales, "SELECT amont FROM sales")
    with pytest.raises(QueryRefused, match="The tables are: sales"):
        run(sales, "SELECT * FROM sale")
