"""Makes the tables of a document, and runs queries over tables: in sandboxed processes, with limits."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

from django.conf import settings
from django.db import transaction
from django.db.models.signals import post_delete
from django.dispatch import receiver

from chat.documents.datasets import names
from chat.documents.datasets.errors import QueryRefused, TableRefused
from chat.documents.models import Dataset, Document
from chatproject.lib import private_files, sandbox

logger = logging.getLogger(__name__)

FOLDER = "datasets"
BUILD = "chat.documents.datasets.build:build"
QUERY = "chat.documents.datasets.queries:run"

MB = 1_000_000
MAX_CELLS = 20_000_000
MAX_TABLES = 50
MAX_FILE = 1_000 * MB  # of the rows as the child writes them between
BUILD_MEMORY_MB, QUERY_MEMORY_MB = 256, 192  # of DuckDB
SPARE_MEMORY = 250 * MB  # of a child beside DuckDB's own: Python, and the cells in its hands
RESULT_BYTES = 5 * MB

TOO_SLOW = "The query takes too long. Filter or aggregate the rows first, or join less."
TOO_MUCH_MEMORY = "The query needs more memory than it may have. Filter or aggregate the rows first, and join less."


@dataclass(frozen=True, slots=True)
class Table:
    """A table in the scope of a query: `name` is the one that the query uses."""

    name: str
    stored: str
    dataset: Dataset
    document: Document
    shape: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Result:
    """The result of a query. `more`: it was cut. `csv` has all rows, if it was asked for, and `rows` the first ones."""

    columns: list[dict[str, str]]
    rows: list[list[Any]]
    total: int
    more: bool
    csv: str = ""


def build(document: Document, source: Path) -> Dataset:
    """Make the tables of a CSV or Excel document from its file, in place of those of a lost attempt.

    Raises TableRefused, and FileNotFoundError.

    It takes up to TABLE_BUILD_SECONDS: for jobs alone.
    """
    if not source.is_file():
        raise FileNotFoundError(document.file)
    with private_files.workplace() as folder:
        target = folder / "tables.duckdb"
        argument = {
            "path": str(source),
            "target": str(target),
            "format": document.format,
            "title": Path(document.name).stem,
            "memory_mb": BUILD_MEMORY_MB,
            "limits": {
                "rows": settings.TABLE_MAX_ROWS,
                "columns": settings.TABLE_MAX_COLUMNS,
                "cells": MAX_CELLS,
                "tables": MAX_TABLES,
            },
        }
        limits = sandbox.Limits(
            memory=BUILD_MEMORY_MB * MB + SPARE_MEMORY,
            address_space=4_000 * MB,
            seconds=settings.TABLE_BUILD_SECONDS,
            cpu=settings.TABLE_BUILD_SECONDS,
            output=64 * MB,
            file_bytes=MAX_FILE,
            nice=10,
        )
        try:
            found = sandbox.call(BUILD, argument, limits, readable=[source], writable=[folder])
        except sandbox.SandboxError as error:
            raise _refusal(error) from error
        name = private_files.new_name(FOLDER)
        private_files.path(name).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        target.chmod(0o600)
        with target.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(target, private_files.path(name))
    size = private_files.path(name).stat().st_size
    try:
        with transaction.atomic():
            Dataset.objects.filter(document=document).delete()
            return Dataset.objects.create(
                document=document, file=name, size=size, tables=found["tables"]
            )
    except BaseException:
        private_files.remove(name)
        raise


def _refusal(error: sandbox.SandboxError) -> TableRefused:
    if error.code == "failed":
        return TableRefused(error.reason, **error.details)
    if (
        error.code == "crashed" and error.reason != "SIGABRT"
    ):  # by which a library ends without memory
        logger.warning("the tables of a document could not be read: %s", error.reason)
        return TableRefused("table_damaged")
    return TableRefused("table_too_slow" if error.code == "too_slow" else "table_too_large")


@receiver(post_delete, sender=Dataset, dispatch_uid="remove_file_of_dataset")
def remove_file(instance: Dataset, **_others: Any) -> None:
    """Remove the file of a dataset that is deleted, also with its document."""
    transaction.on_commit(lambda: private_files.remove(instance.file))


def tables_of(documents: Iterable[UUID]) -> list[Table]:
    """Return the tables of documents, in the order of the documents, each with a name of its own."""
    wanted = list(documents)
    rows = Dataset.objects.filter(document__in=wanted, document__deleted_at=None)
    found = {one.document_id: one for one in rows.select_related("document")}
    shapes = [(found[id], shape) for id in wanted if id in found for shape in found[id].tables]
    distinct = names.distinct(shape["name"] for _dataset, shape in shapes)
    return [
        Table(name, shape["name"], dataset, dataset.document, shape)
        for name, (dataset, shape) in zip(distinct, shapes, strict=True)
    ]


def query(
    tables: Sequence[Table],
    sql: str,
    *,
    rows: int | None = None,
    csv: bool = False,
    preview: int | None = None,
    seconds: float | None = None,
) -> Result:
    """Run one SELECT over tables. Raises QueryRefused with a sentence for the model."""
    paths = [str(private_files.path(table.dataset.file)) for table in tables]
    argument = {
        "tables": [
            {"name": table.name, "stored": table.stored, "path": path}
            for table, path in zip(tables, paths, strict=True)
        ],
        "sql": sql,
        "rows": settings.TABLE_QUERY_ROWS if rows is None else rows,
        "bytes": RESULT_BYTES,
        "memory_mb": QUERY_MEMORY_MB,
        "csv": csv,
        **({} if preview is None else {"preview": preview}),
    }
    most = min(seconds or settings.TABLE_QUERY_SECONDS, settings.TABLE_QUERY_SECONDS)
    limits = sandbox.Limits(
        memory=QUERY_MEMORY_MB * MB + SPARE_MEMORY,
        address_space=4_000 * MB,
        seconds=most,
        cpu=max(1, round(most)),
        output=8 * RESULT_BYTES,
        file_bytes=1 * MB,
    )
    try:
        found = sandbox.call(QUERY, argument, limits, readable=paths)
    except sandbox.SandboxError as error:
        if error.code == "failed":
            raise QueryRefused(error.details["sentence"]) from error
        if error.code in ("too_slow", "too_much_memory"):
            raise QueryRefused(TOO_SLOW if error.code == "too_slow" else TOO_MUCH_MEMORY) from error
        logger.warning("a query over tables ended its process: %s", error)
        raise QueryRefused("The query could not be run. Write a simpler one.") from error
    return Result(**found)
