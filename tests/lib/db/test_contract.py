"""Private and undocumented names of Django, psycopg and psycopg_pool that the product relies on.

All three are pinned with ``==`` in requirements.in, so that an upgrade fails here and not in production.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django.db import connection, models, transaction
from django.db.backends.postgresql.base import DatabaseWrapper, ServerBindingCursor
from django.db.backends.utils import CursorWrapper
from django.db.models.base import ModelState
from django.db.models.options import Options
from django.http import HttpResponse
from django.utils.functional import SimpleLazyObject
from psycopg._queries import MAX_CACHED_STATEMENT_PARAMS
from psycopg_pool import ConnectionPool
from psycopg_pool.base import AttemptWithBackoff

import chatproject
from chat.conversations.transcript import RUN
from chat.models import Message, Run
from chatproject.lib.db import money_transaction, pool, prepared

PROJECT = Path(chatproject.__file__).parents[1]

# Each with the names of its parameters, without `self` and `cls`.
SIGNATURES: list[tuple[Callable[..., Any], str]] = [
    (DatabaseWrapper._prepare_cursor, "cursor"),  # type: ignore[attr-defined]
    (models.Field.get_db_converters, "connection"),
    (models.Field.get_col, "alias output_field"),
    (models.Field.get_db_prep_save, "value connection"),
    (models.Field.pre_save, "model_instance add"),
    (models.JSONField.from_db_value, "value expression connection"),
    (models.Model.from_db, "db field_names values"),
    (transaction.atomic, "using savepoint durable"),
    (transaction.on_commit, "func using robust"),
    (pool._ask_server, "conn"),
    (AttemptWithBackoff, "timeout"),
    (AttemptWithBackoff.update_delay, "now"),
    (AttemptWithBackoff.time_to_give_up, "now"),
    (SimpleLazyObject, "func"),
    (psycopg.Connection.wait, "gen interval timeout"),
    (psycopg.Connection.cancel_safe, "timeout"),
    (ConnectionPool.drain, ""),
    (pool._getconn, "timeout"),
]
ATTRIBUTES: list[tuple[object, str]] = [
    (connection, "_prepare_cursor connection ensure_connection in_atomic_block queries_logged"),
    (ModelState, "adding db fields_cache"),
    (Options, "concrete_fields fields"),
    (models.QuerySet, "_raw_delete"),
    (Message, "_base_manager _default_manager _meta"),
    (Message(), "_state"),
    (Message._meta, "db_table verbose_name"),
    (Message._meta.pk, "attname column primary_key"),
    (RUN, "set_cached_value"),
    (psycopg.Connection, "autocommit info"),
    (psycopg.errors, "_WaitTimeout"),
    (psycopg.ConnectionInfo, "transaction_status"),
]


@pytest.mark.parametrize(("called", "parameters"), SIGNATURES)
def test_callable_has_its_signature(called: Callable[..., Any], parameters: str):
    names = inspect.signature(called).parameters
    assert [name for name in names if name != "self"] == parameters.split()


@pytest.mark.parametrize(("owner", "names"), ATTRIBUTES)
def test_object_has_its_attributes(owner: object, names: str):
    for name in names.split():
        assert hasattr(owner, name)


def test_private_names_in_use_are_listed():
    """Every private name of another object that these packages have is in the list."""
    folders = ("accounts", "billing", "chat", "chatproject")
    paths = (path for folder in folders for path in (PROJECT / folder).rglob("*.py"))
    nodes = (node for path in paths for node in ast.walk(ast.parse(path.read_text())))
    used = {
        node.attr
        for node in nodes
        if isinstance(node, ast.Attribute)
        and re.match("_[^_]", node.attr)
        and not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"))
    }
    owners = [Message, Message(), Message._meta, RUN, models.QuerySet, HttpResponse(), connection]
    owners += [CursorWrapper, transaction, psycopg.Connection, psycopg.Cursor, ConnectionPool]
    foreign = {name for name in used for owner in owners if hasattr(owner, name)}
    listed = {name for _, names in ATTRIBUTES for name in names.split()}
    assert foreign <= listed


def test_pool_uses_our_check_and_pauses():
    """A call drops a broken connection per pause: sixteen within the five seconds of a call."""
    assert connection.pool._check is pool.check  # type: ignore[attr-defined]
    assert ConnectionPool.check_connection is pool.check
    attempt, now, pauses = AttemptWithBackoff(timeout=5), 0.0, 0
    attempt.update_delay(now)
    while not attempt.time_to_give_up(now):
        now += attempt.delay
        pauses += 1
        attempt.update_delay(now)
    assert pauses >= 16
    assert now >= 5


@pytest.mark.django_db
def test_cursor_prepares_its_statements():
    prepared.all("SELECT %s::int AS contract", [1])
    assert isinstance(connection._prepare_cursor(None), CursorWrapper)  # type: ignore[attr-defined]
    assert issubclass(ServerBindingCursor, psycopg.Cursor)
    assert prepared.all(
        "SELECT statement FROM pg_prepared_statements WHERE statement LIKE %s", ["%AS contract"]
    ) == [("SELECT $1::int AS contract",)]


def test_statements_of_fifty_values_are_cached():
    """The reason for the NULLs that `prepared.write` writes into its statements."""
    assert MAX_CACHED_STATEMENT_PARAMS == 50


def test_state_of_an_object_follows_its_origin():
    assert Message()._state.adding
    fields = Message._meta.concrete_fields
    loaded = Message.from_db("default", [field.attname for field in fields], [None] * len(fields))
    assert (loaded._state.adding, loaded._state.db) == (False, "default")


def test_assigned_relations_are_cached_on_both_sides():
    run, message = Run(), Message()
    assert "message" not in run._state.fields_cache
    run.message = message
    assert run._state.fields_cache["message"] is message
    assert message.run is run


def test_relation_cached_as_none_needs_no_query():
    """The test may not use the database: a query would raise another exception."""
    message = Message()
    RUN.set_cached_value(message, None)
    with pytest.raises(Run.DoesNotExist):
        _ = message.run


@pytest.mark.django_db(transaction=True)
def test_outermost_transaction_ends_in_autocommit_mode():
    """`money_transaction` sends its own BEGIN in that mode, and leaves the end to Django."""
    for _ in range(2):
        money_transaction(lambda: None)
        psycopg_connection = connection.connection
        assert psycopg_connection.autocommit
        assert psycopg_connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
