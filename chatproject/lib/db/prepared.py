"""Plain, prepared SQL for the few statements of each message, and model objects from its rows.

Django takes longer to write such a query than Postgres to answer it, and its `raw` nearly as long to
map the columns. Here the statement names them: `columns` in the SELECT or RETURNING, and the same
models in the same order for `first` and `each`. Postgres takes longer to plan such a statement than
to execute it, so each connection prepares it once (DB_PREPARE, lib.db.pooler). `python -m bench statements`
prints the statements and CPU of a message.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import groupby
from typing import Any

from django.db import connection
from django.db.backends.postgresql.base import ServerBindingCursor
from django.db.backends.utils import CursorWrapper
from django.db.models import Model

Params = Sequence[Any] | Mapping[str, Any]


def columns(model: type[Model], table: str) -> str:
    """Return the columns of a model, comma-separated; `table` is its alias in the statement."""
    return ", ".join(f"{table}.{field.column}" for field in model._meta.concrete_fields)


def first(sql: str, params: Params, *models: type[Model]) -> tuple[Any, ...] | None:
    """Return the first row as one object per model, or None without a row.

    An outer join without a match gives None instead of an object. Columns after the models' follow
    unchanged.
    """
    with _cursor() as cursor:
        cursor.execute(sql, params)
        row = cursor.fetchone()
    return None if row is None else _objects(row, models)


def each(sql: str, params: Params, *models: type[Model]) -> list[tuple[Any, ...]]:
    """Return all rows, each as `first` returns one."""
    return [_objects(row, models) for row in all(sql, params)]


def all(sql: str, params: Params) -> list[tuple[Any, ...]]:
    """Return all rows unchanged."""
    with _cursor() as cursor:
        cursor.execute(sql, params)
        return list(cursor.fetchall())


@dataclass(frozen=True, slots=True)
class Change:
    """A statement that `write` sends together with others."""

    sql: str
    params: Sequence[Any]


def write(*what: Model | Change) -> None:
    """Insert new objects and apply changes, all in one statement.

    Give objects of one model side by side. They may refer to each other: the database checks
    references at the COMMIT. Sends no signals. A change sees only rows that existed before.
    """
    statements: list[str] = []
    params: list[Any] = []
    for kind, some in groupby(what, type):
        if issubclass(kind, Model):
            inserting = _inserting(kind, list(some))
            statements.append(inserting.sql)
            params += inserting.params
        else:
            for one in some:
                assert isinstance(one, Change)
                statements.append(one.sql)
                params += one.params
    *others, last = statements
    parts = ", ".join(f"part_{index} AS ({sql})" for index, sql in enumerate(others))
    change(f"WITH {parts} {last}" if parts else last, params)


def _inserting(model: type[Model], objects: Sequence[Any]) -> Change:
    values = []
    params: list[Any] = []
    for made in objects:
        row = [
            field.get_db_prep_save(field.pre_save(made, add=True), connection)
            for field in model._meta.concrete_fields
        ]
        # NULLs are written into the statement: psycopg parses one of over 50 values anew each time.
        values.append(f"({', '.join('NULL' if value is None else '%s' for value in row)})")
        params += [value for value in row if value is not None]
        made._state.adding = False
        made._state.db = "default"
    names = ", ".join(str(field.column) for field in model._meta.concrete_fields)
    table = model._meta.db_table
    return Change(f"INSERT INTO {table} ({names}) VALUES {', '.join(values)}", params)  # noqa: S608 # of names alone


def change(sql: str, params: Params) -> int:
    """Execute a statement that writes; return the number of rows."""
    with _cursor() as cursor:
        cursor.execute(sql, params)
        return int(cursor.rowcount)


def _cursor() -> CursorWrapper:
    """Return a cursor of Django's whose statements are prepared; its default one inlines values.

    Where statements are logged it is a default one: only those record what they have sent.
    """
    connection.ensure_connection()
    is_prepared = connection.connection.prepare_threshold is not None  # see lib.db.pooler
    if not is_prepared or connection.queries_logged:
        return connection.cursor()
    # As `connection.cursor()` does it, which has only one kind of cursor for a connection.
    cursor = ServerBindingCursor(connection.connection)  # type: ignore[call-arg] # psycopg's
    made: CursorWrapper = connection._prepare_cursor(cursor)  # type: ignore[attr-defined]
    return made


def _objects(row: Sequence[Any], models: Sequence[type[Model]]) -> tuple[Any, ...]:
    found: list[Any] = []
    begin = 0
    for model in models:
        names, converters = _shape(model)
        end = begin + len(names)
        # The first column of each of our models is its key, which is never NULL in a row.
        if row[begin] is None:
            found.append(None)
        else:
            values = list(row[begin:end])
            for index, convert in converters:
                values[index] = convert(values[index])
            found.append(model.from_db("default", names, values))
        begin = end
    return (*found, *row[begin:])


@cache
def _shape(model: type[Model]) -> tuple[list[str], list[tuple[int, Callable[[Any], Any]]]]:
    """Return the names of the attributes, and the converters of some values by index."""
    fields = model._meta.concrete_fields
    converters: list[tuple[int, Callable[[Any], Any]]] = [
        (
            index,
            partial(convert, expression=field.get_col(model._meta.db_table), connection=connection),
        )
        for index, field in enumerate(fields)
        for convert in field.get_db_converters(connection)
    ]
    return [field.attname for field in fields], converters
