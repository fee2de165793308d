"""Locks of rows and tables, for tests of code that has to wait for them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from django.db import connection, transaction
from django.db.models import Model

from tests.support.programs import wait_until


def locked(row: Model) -> AbstractContextManager[None]:
    """Keep a row (of an account, a hold) locked by another session, so that a settlement has to wait."""
    return _held(lambda: type(row)._default_manager.select_for_update().get(pk=row.pk))


def unreadable(model: type[Model]) -> AbstractContextManager[None]:
    """Keep a table locked by another session, so that all that read it have to wait."""
    return _held(lambda: _lock_table(model, "ACCESS EXCLUSIVE"))


def unwritable(model: type[Model]) -> AbstractContextManager[None]:
    """Keep a table locked by another session, so that all that write to it have to wait."""
    return _held(lambda: _lock_table(model, "EXCLUSIVE"))


def _lock_table(model: type[Model], mode: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(f"LOCK TABLE {model._meta.db_table} IN {mode} MODE")


@contextmanager
def _held(lock: Callable[[], object]) -> Iterator[None]:
    is_locked, may_go = threading.Event(), threading.Event()

    def hold_lock() -> None:
        try:
            with transaction.atomic():
                lock()
                is_locked.set()
                may_go.wait(60)
        finally:
            connection.close()

    thread = threading.Thread(target=hold_lock)
    thread.start()
    is_locked.wait(10)
    try:
        yield
    finally:
        may_go.set()
        thread.join()


def wait_for_blocked_session() -> None:
    """Return when a session of this database waits for a lock."""

    def is_blocked() -> bool:
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT count(*) FROM pg_stat_activity"
                " WHERE datname = current_database() AND wait_event_type = 'Lock'"
            )
            return bool(cursor.fetchone()[0])

    wait_until(is_blocked, "a session waits for a lock", 30)
