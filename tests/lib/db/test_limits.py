"""Time limits of statements and calls, kept while Postgres is slow, frozen or silent."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from django.db import OperationalError, connection, transaction
from psycopg_pool import ConnectionPool

from chatproject.lib import db
from chatproject.lib.db import limits, threads
from tests.support.black_hole import BlackHole
from tests.support.stack import database_url

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "STATEMENT", 0.5)
    monkeypatch.setattr(limits, "CANCEL", 0.5)
    monkeypatch.setattr(limits, "default", None)  # a worker in this process may have set it


def sleep(seconds: float) -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid(), pg_sleep(%s)", [seconds])
        return int(cursor.fetchone()[0])


def running() -> int:
    """The number of statements that Postgres executes for this database, besides this one."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
            " AND state = 'active' AND pid <> pg_backend_pid()"
        )
        return int(cursor.fetchone()[0])


def test_slow_statement_is_cancelled_in_the_server():
    before = sleep(0)
    with pytest.raises(OperationalError, match="cancelled"), limits.statements(0.5):
        sleep(60)
    assert running() == 0
    assert sleep(0) == before  # the connection is still in use


def test_cancelled_statement_rolls_its_transaction_back():
    @transaction.atomic
    @limits.statements(0.5)
    def create_and_sleep() -> None:
        with connection.cursor() as cursor:
            cursor.execute("CREATE TABLE limits_test (id int)")
        sleep(60)

    with pytest.raises(OperationalError):
        create_and_sleep()
    assert "limits_test" not in connection.introspection.table_names()


def test_statements_without_limit_take_their_time():
    with limits.statements(0.5), limits.statements(None):
        sleep(1.5)


def test_later_statements_get_the_rest(monkeypatch):
    monkeypatch.setattr(limits, "LEAST", 0.1)
    with limits.statements(5, answer_at=time.monotonic() + 2 * limits.CANCEL + 1):
        assert 0.5 < (limits.statement_limit() or 0) <= 1
        with pytest.raises(OperationalError):
            sleep(60)
        assert limits.statement_limit() == 0.1


@pytest.fixture
def hole() -> Iterator[BlackHole]:
    with BlackHole(database_url()) as hole:
        yield hole


@pytest.fixture
def pool(hole: BlackHole) -> Iterator[ConnectionPool[limits.Connection]]:
    """A pool of three open connections through the hole."""
    url = hole.url.replace("postgres://", "postgresql://")
    options: Any = {"autocommit": True, "connect_timeout": 2}
    with ConnectionPool(
        url, connection_class=limits.Connection, min_size=3, kwargs=options, timeout=3
    ) as pool:
        pool.wait(10)
        yield pool
        hole.open()


def test_silent_connection_takes_the_idle_ones_with_it(pool, hole):
    old = [pool.getconn() for _ in range(3)]
    pids = {one.info.backend_pid for one in old}
    for one in old:
        pool.putconn(one)
    hole.lose_connections()
    one = pool.getconn()
    with pytest.raises(psycopg.OperationalError, match="no answer"), limits.statements(0.5):
        one.execute("SELECT 1")
    assert one.closed
    pool.putconn(one)
    for _ in range(3):
        with pool.connection() as another:
            assert another.info.backend_pid not in pids
            assert another.execute("SELECT 1").fetchone() == (1,)


def test_new_connection_does_not_wait_for_ever(hole):
    """The pool's workers, which set connections up, are not blocked either."""
    one = limits.Connection.connect(hole.url)
    hole.close()
    began = time.monotonic()
    with pytest.raises(psycopg.OperationalError):
        one.execute("SELECT 1")
    assert time.monotonic() - began < limits.Connection.idle_limit + 10
    hole.open()


async def test_waiting_calls_are_refused_while_threads_hang(monkeypatch, settings):
    monkeypatch.setattr(threads, "MAX_WAIT", 0.3)
    monkeypatch.setattr(threads, "SILENCE", 0.2)
    may_go = threading.Event()

    def hang() -> None:
        may_go.wait(30)
        raise OperationalError("silent")

    calls = [asyncio.create_task(db.run(hang)) for _ in range(settings.DB_THREADS)]
    called: list[int] = []
    await asyncio.sleep(0.05)
    with pytest.raises(OperationalError, match="no thread is free"):
        await db.run_within(5, called.append, 1)
    may_go.set()
    await asyncio.gather(*calls, return_exceptions=True)
    assert called == []
    await db.run_within(5, called.append, 2)
    assert called == [2]


async def test_waiting_calls_get_their_turn_while_others_succeed(monkeypatch, settings):
    monkeypatch.setattr(threads, "MAX_WAIT", 0.2)
    await db.run(int)  # otherwise no call has succeeded, should the first ones end late
    calls = [db.run_within(5, time.sleep, 0.1) for _ in range(settings.DB_THREADS * 10)]
    assert await asyncio.gather(*calls) == [None] * len(calls)


async def test_cancelled_caller_is_cancelled():
    call = asyncio.create_task(db.run_within(5, time.sleep, 0.5))
    await asyncio.sleep(0.1)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
