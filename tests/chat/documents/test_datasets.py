"""Tables of uploaded files: types, odd files, and files that are refused."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import pytest
from django.test import Client

from accounts.models import User
from chat.documents import reading
from chat.documents.datasets import build, describe, store
from chat.documents.datasets.errors import QueryRefused, TableRefused
from chat.documents.datasets.words import REASONS
from chat.documents.models import Dataset, Document
from chatproject.lib import private_files
from tests.support import tables

pytestmark = pytest.mark.django_db

GERMAN = (
    "\ufeffDatum;Umsatz in €;Anteil;PLZ;Name;Name;\r\n"
    "01.02.2024;1.234,50;12,5 %;01234;Ä;=1+1;x\r\n"
    "13.02.2024;-2,25;7 %;80331;B;\r\n"
)


@pytest.fixture
def user():
    return User.objects.create_user("owner@example.org", "correct horse battery")


def types_of(dataset: Dataset) -> dict[str, str]:
    return {column["name"]: column["type"] for column in dataset.tables[0]["columns"]}


def test_german_csv_gets_types(user):
    made = tables.dataset(user, GERMAN, "Verkäufe 2024.csv")
    (table,) = made.tables
    assert table["name"] == "verkäufe_2024"
    assert types_of(made) == {
        "Datum": "date", "Umsatz in €": "number", "Anteil": "number", "PLZ": "text",
        "Name": "text", "Name_2": "text", "column_7": "text",
    }  # fmt: skip
    assert table["columns"][2]["unit"] == "%"
    assert table["preview"][0] == ["2024-02-01", 1234.5, 12.5, "01234", "Ä", "=1+1", "x"]
    found = store.query(
        store.tables_of([made.document_id]), 'SELECT sum("Umsatz in €") FROM verkäufe_2024'
    )
    assert found.rows == [[1232.25]]


COLUMNS = [
    ("a,b\n1.234,x\n2.5,y\n", {"a": "number", "b": "text"}),
    ("a,b\n\"1,234\",01/13/2024\n", {"a": "number", "b": "date"}),
    ("a,b\n1,€ 5\n2,$ 5\n", {"a": "integer", "b": "text"}),
    ("a,b\n12345678901234567890,1e5\n1,2\n", {"a": "text", "b": "number"}),
    ("a\tb\n2024-01-05T10:00:00Z\t9:30\n2024-01-05 10:00\t10:15\n", {"a": "datetime", "b": "time"}),
    ("a|b\ntrue|N/A\nFALSE|3\n", {"a": "boolean", "b": "integer"}),
    ("sep=;\na;b\n1;x\n", {"a": "integer", "b": "text"}),
    ("Land,2023,2024\nDE,1,2\n", {"Land": "text", "2023": "integer", "2024": "integer"}),
    ("1,x\n2,y\n", {"column_1": "integer", "column_2": "text"}),
    ("Export of May\n\nday,n\n2024-05-01,3\n", {"day": "date", "n": "integer"}),
    ("n,m\n1e400,1e308\n2,3\n", {"n": "text", "m": "number"}),
    ("d,e\n9999-12-31,12000-01-01\n2024-02-30,31.12.10000\n", {"d": "text", "e": "text"}),
    ("a\u202eb,\u200b,a,A,\"x\"\"; DROP TABLE t0; --\",select\n1,2,3,4,5,6\n",
     {"ab": "integer", "column_2": "integer", "a": "integer", "A_2": "integer",
      "x'; DROP TABLE t0; --": "integer", "select": "integer"}),
    ("a,b\n1,\"never closed\n2,x\n" + "3,y\n" * 300_000, {"a": "integer", "b": "text"}),
]  # fmt: skip


def test_columns_get_types(tmp_path, monkeypatch):
    """Without the sandbox, whose process takes most of the time of a small file."""
    monkeypatch.chdir(tmp_path)
    for number, (content, expected) in enumerate(COLUMNS):
        table = built(number, content.encode())
        assert {one["name"]: one["type"] for one in table["columns"]} == expected, content[:100]


def built(number: int, content: bytes, format: str = "csv") -> dict[str, Any]:
    Path(f"{number}.{format}").write_bytes(content)
    limits = {"rows": 500_000, "columns": 100, "cells": 1_000_000, "tables": 1}
    made = build.build(
        {
            "path": f"{number}.{format}", "target": f"{number}.duckdb", "format": format, "title": "a",
            "memory_mb": 128, "limits": limits,
        }
    )  # fmt: skip
    table: dict[str, Any] = made["tables"][0]
    return table


def test_encodings_are_recognised(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number, encoding in enumerate(["utf-16", "utf-16-le", "utf-8-sig", "cp1252", "utf-32"]):
        table = built(number, "Name,Stadt\nJosé,Köln\nÅsa,Malmö\n".encode(encoding))
        assert table["preview"] == [["José", "Köln"], ["Åsa", "Malmö"]]
    cyrillic = "имя;город\n" + "Иван;Москва\nПётр;Тула\n" * 5
    assert built(9, cyrillic.encode("cp1251"))["preview"][0] == ["Иван", "Москва"]


def test_workbook_has_a_table_per_sheet(user):
    book = tables.workbook(
        {"Orders": [["id", "sum"], ["a", 1.5], ["b", "=1+6"]], "Empty": [], "orders!": [["n"], [1]]}
    )
    made = tables.dataset(user, book, "book.xlsx")
    assert [table["name"] for table in made.tables] == ["orders", "orders_2"]
    assert made.tables[0]["preview"] == [["a", 1.5], ["b", 7]]


def bomb() -> bytes:
    file = io.BytesIO(tables.workbook({"a": [["x"]]}))
    with zipfile.ZipFile(file, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("xl/media/zeros", b"0" * 30_000_000)
    return file.getvalue()


def test_hostile_files_are_refused(user, settings, monkeypatch):
    settings.TABLE_MAX_ROWS = 5_000
    monkeypatch.setattr(store, "MAX_CELLS", 100_000)
    files = [
        (b"", "a.csv", "table_empty"),
        (b"\n\n,,\n", "b.csv", "table_empty"),
        (",".join(map(str, range(10_000))).encode(), "a.csv", "table_too_many_columns"),
        (b"x" * 25_000_000, "a.csv", "table_row_too_long"),
        (b"x\n" * 5_002, "a.csv", "table_too_many_rows"),
        (b"a" + b"," * 900 + b"b\n" + b"c\n" * 300, "a.csv", "table_too_many_cells"),
        (b"PK\x03\x04 no zip", "a.xlsx", "table_damaged"),
        (bytes.fromhex("d0cf11e0a1b11ae1"), "a.xlsx", "table_encrypted"),
        (bomb(), "a.xlsx", "table_expands_too_much"),
    ]
    for content, name, code in files:
        with pytest.raises(TableRefused) as refused:
            tables.dataset(user, content, name)
        assert refused.value.code == code
        assert code in REASONS
    assert not Dataset.objects.exists()


SHEET = "xl/worksheets/s1.xml"
ROW = '<row><c t="inlineStr"><is><t>a</t></is></c></row><row>{}</row>'
HOSTILE_SHEETS = [
    ('<c r="ZZZZZZ99999999999"><v>1</v></c>', "table_damaged"),
    ('<c r="XFD1048576"><v>1</v></c>', "table_too_many_columns"),
    ('<c t="s"><v>99999999</v></c>', "table_damaged"),
    ("<c><v>1</v>", "table_damaged"),
]  # fmt: skip


def sheet_with(cells: str, head: str = "") -> bytes:
    """Return a workbook whose only sheet has a head and a row of these cells."""
    made = tables.workbook({"A": [["a"], [1]]})
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(made)) as old, zipfile.ZipFile(file, "w") as new:
        for name in old.namelist():
            text = old.read(name).decode()
            if name == SHEET:
                begin, _data, end = text.partition("<sheetData>")
                end = end.partition("</sheetData>")[2]
                text = f"{head}{begin}<sheetData>{ROW.format(cells)}</sheetData>{end}"
            new.writestr(name, text)
    return file.getvalue()


def test_hostile_sheets_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bomb = '<!DOCTYPE a [<!ENTITY b "bbbb"><!ENTITY c "&b;&b;&b;">]>'
    outside = '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]>'
    named = '<c t="inlineStr"><is><t>{}</t></is></c>'
    made = [(sheet_with(cells), code) for cells, code in HOSTILE_SHEETS]
    made.append((sheet_with(named.format("&c;"), bomb), "table_damaged"))
    made.append((sheet_with(named.format("&b;"), outside), "table_damaged"))
    for number, (content, code) in enumerate(made):
        with pytest.raises(TableRefused) as refused:
            built(number, content, "xlsx")
        assert refused.value.code == code, number
    # Formats alone lie far out in many files.
    far = built(9, sheet_with('<c r="A2"><v>1</v></c><c r="XFD2" s="1"/>'), "xlsx")
    assert far["preview"] == [[1]]


def test_query_that_takes_too_long_ends(user, settings):
    settings.TABLE_QUERY_SECONDS = 1
    found = store.tables_of([tables.dataset(user, "a\n1\n").document_id])
    endless = (
        "WITH RECURSIVE r AS (SELECT 1 AS n UNION ALL SELECT n + 1 FROM r) SELECT max(n) FROM r"
    )
    with pytest.raises(QueryRefused, match="too long"):
        store.query(found, endless)


def test_query_that_takes_too_much_memory_ends(user, settings):
    settings.TABLE_QUERY_SECONDS = 2
    found = store.tables_of([tables.dataset(user, "a\n1\n").document_id])
    with pytest.raises(QueryRefused, match=r"memory|too long"):
        store.query(found, "SELECT repeat('x', 2000000000) FROM sales")


def test_tables_of_documents_are_joined_by_name(user):
    one = tables.dataset(user, "shop,n\nNorth,1\n", "sales.csv")
    other = tables.dataset(user, "shop,boss\nNorth,Ada\n", "Sales.csv")
    found = store.tables_of([one.document_id, other.document_id])
    assert [table.name for table in found] == ["sales", "sales_2"]
    assert store.query(found, "SELECT boss FROM sales JOIN sales_2 USING (shop)").rows == [["Ada"]]
    text = describe.of_tables(found)
    assert '- "boss" VARCHAR' in text
    assert '["North","Ada"]' in text


def test_wide_tables_are_described_in_bounds(user):
    row = ",".join(f"a rather long name of column {number}" for number in range(900))
    made = tables.dataset(user, f"{row}\n{','.join(['x' * 200] * 900)}\n")
    text = describe.prompt_text([made.document_id])
    assert len(text) < describe.MAX_CHARACTERS + 1_000
    assert "Select from" in text


@pytest.mark.django_db(transaction=True)
def test_deletion_removes_the_file():
    made = tables.dataset(User.objects.create_user("owner@example.org", "correct horse"), "a\n1\n")
    path = private_files.path(made.file)
    assert path.is_file()
    made.document.delete()
    assert not path.exists()


def test_reading_makes_tables_with_a_page(user):
    document = tables.upload(user, GERMAN.replace(";x\r\n", ";03/04/2024\r\n"), "a.csv")
    Document.objects.filter(pk=document.pk).update(status="uploaded", attempt=0)
    reading.run(document.pk, 0)
    client = Client()
    client.force_login(user)
    page = client.get(document.get_absolute_url()).content.decode()
    assert "Umsatz in €" in page
    assert "1234.5" in page
    assert "could be exchanged" in page
    other = tables.upload(user, b"", "b.csv")
    Document.objects.filter(pk=other.pk).update(status="uploaded", attempt=0)
    reading.run(other.pk, 0)
    other.refresh_from_db()
    assert (other.status, other.reason) == ("failed", "table_empty")
    assert "The file has no rows" in client.get(other.get_absolute_url()).content.decode()
