"""Calls after an outage of Postgres, with a pool full of broken connections."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from django.db import connection

from chatproject.lib import db

pytestmark = pytest.mark.django_db(transaction=True)

BROKEN = 14


def backend(together: threading.Barrier) -> int:
    """The process of Postgres that serves this thread, and no other thread meanwhile."""
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_backend_pid()")
            together.wait(30)
            return int(cursor.fetchone()[0])
    finally:
        connection.close()


def answer() -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT 42")
        return int(cursor.fetchone()[0])


async def test_one_call_replaces_all_broken_connections():
    together = threading.Barrier(BROKEN)
    with ThreadPoolExecutor(BROKEN) as threads:
        backends = list(threads.map(backend, [together] * BROKEN))

    def end_all() -> None:
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT pg_terminate_backend(pid, 10000) FROM unnest(%s) AS pid"
                " WHERE pid <> pg_backend_pid()",
                [backends],
            )

    await db.run(end_all)
    assert await db.run(answer) == 42
    connection.pool.check()  # type: ignore[attr-defined] # so that no other test gets a broken one
