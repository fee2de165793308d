"""Models from plain SQL, for the few statements that each message needs.

Django takes longer to write such a query than Postgres to answer it, and its `raw` takes nearly as
long to find out which column is which. Here the statement names them: `columns` in the SELECT or
RETURNING, and the same models in the same order for `first`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import groupby
from typing import Any

from django.db import connection
from django.db.models import Model


def columns(model: type[Model], table: str) -> str:
    """All columns of a model for a list of a statement; `table` is its name in that statement."""
    return ", ".join(f"{table}.{field.column}" for field in model._meta.concrete_fields)


def first(
    sql: str, params: Sequence[Any] | Mapping[str, Any], *models: type[Model]
) -> tuple[Any, ...] | None:
    """The first row as one object per model, or None without a row.

    Instead of an object there is None where an outer join found nothing. Whatever the statement
    tells after the models' columns is not read.
    """
    with connection.cursor() as cursor:
        cursor.execute(sql, params)
        row = cursor.fetchone()
    if row is None:
        return None
    found: list[Model | None] = []
    begin = 0
    for model in models:
        names, converters = _shape(model)
        values = list(row[begin : begin + len(names)])
        begin += len(names)
        for index, convert in converters:
            values[index] = convert(values[index])
        # The first column of each of our models is its key, which is never NULL in a row.
        found.append(None if values[0] is None else model.from_db("default", names, values))
    return tuple(found)


def insert(*objects: Model) -> None:
    """Insert new objects in one statement, those of one model side by side.

    Their references may be to each other: the database looks at them at the COMMIT. No signals.
    """
    statements, params = [], []
    model: type[Model]
    for model, some in groupby(objects, type):
        values = []
        for made in some:
            row = [_stored(field, made) for field in model._meta.concrete_fields]
            values.append(f"({', '.join(['%s'] * len(row))})")
            params += row
            made._state.adding = False
            made._state.db = "default"
        names = ", ".join(str(field.column) for field in model._meta.concrete_fields)
        table = model._meta.db_table
        statements.append(f"INSERT INTO {table} ({names}) VALUES {', '.join(values)}")  # noqa: S608 # of names alone
    *others, last = statements
    parts = ", ".join(f"part_{index} AS ({sql})" for index, sql in enumerate(others))
    change(f"WITH {parts} {last}" if parts else last, params)


def _stored(field: Any, made: Model) -> Any:
    return field.get_db_prep_save(field.pre_save(made, add=True), connection)


def change(sql: str, params: Sequence[Any] | Mapping[str, Any]) -> int:
    """Write something; returns how many rows that were."""
    with connection.cursor() as cursor:
        cursor.execute(sql, params)
        return int(cursor.rowcount)


@cache
def _shape(model: type[Model]) -> tuple[list[str], list[tuple[int, Callable[[Any], Any]]]]:
    """The names of the attributes, and how the values of some are read."""
    fields = model._meta.concrete_fields
    converters = [
        (index, _converter(field, convert))
        for index, field in enumerate(fields)
        for convert in field.get_db_converters(connection)
    ]
    return [field.attname for field in fields], converters


def _converter(field: Any, convert: Any) -> Callable[[Any], Any]:
    column = field.get_col(field.model._meta.db_table)
    return lambda value: convert(value, column, connection)
