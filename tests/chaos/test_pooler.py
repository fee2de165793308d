"""All processes behind a real PgBouncer with transaction pooling, as on a managed Postgres."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from django.db import connection, connections
from django.db.backends.postgresql.base import DatabaseWrapper

from accounts.models import User
from billing.models import LedgerEntry
from chatproject.lib import db
from chatproject.lib.db import limits, pooler
from chatproject.lib.leadership.lease import leader
from chatproject.local.servers import PostgresServer
from tests.chaos.rounds.faults import children
from tests.support import pgbouncer
from tests.support.fake_llm import FakeLLM, reply_text
from tests.support.people import session_key
from tests.support.pgbouncer import PgBouncer
from tests.support.reconnecting_client import LiveTab
from tests.support.stack import Stack, database_url

TABS = 20
SESSIONS = 4  # of Postgres, for all processes together

pytestmark = [
    pgbouncer.needed,
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("assistant", "valkey_url"),
    pytest.mark.timeout(240),
]


@pytest.fixture
def bouncer(server_folder) -> Iterator[PgBouncer]:
    server = PgBouncer(server_folder, database_url(), sessions=SESSIONS)
    server.start()
    yield server
    server.stop()


# --- Connections ---------------------------------------------------------------------------------


def test_pooler_is_recognised_and_a_server_is_not(bouncer: PgBouncer, caplog):
    pooler._report.cache_clear()
    caplog.set_level(logging.INFO)
    keeps = pgbouncer.keeps_prepared_statements()
    with limits.Connection.connect(database_url(), prepare_threshold=0) as direct:
        assert not pooler.is_behind_pooler(direct)
        assert direct.prepare_threshold == 0
    for _ in range(3):  # each finds what those before it have left in the same session
        with limits.Connection.connect(bouncer.url, prepare_threshold=0) as pooled:
            assert pooler.is_behind_pooler(pooled)
            assert pooled.prepare_threshold == (0 if keeps else None)
    assert caplog.text.count("a pooler that does not keep prepared statements") == (not keeps)
    with limits.Connection.connect(bouncer.url, autocommit=True) as pooled:
        names = "SELECT count(*) FROM pg_prepared_statements WHERE name LIKE %s"
        assert pooled.execute(names, ["\\_pg3%"]).fetchone() == (0,)


def test_prepared_statements_work_in_each_session(bouncer: PgBouncer):
    """Several clients with statements of the same names, whose sessions change all the time."""
    clients = [
        limits.Connection.connect(bouncer.url, autocommit=True, prepare_threshold=0)
        for _ in range(3 * SESSIONS)
    ]
    try:
        for turn in range(10):
            for number, client in enumerate(clients):
                with client.transaction():
                    found = client.execute(f"SELECT {number}, %s", [turn]).fetchone()
                    others = clients[number - 1].execute("SELECT %s::int", [turn]).fetchone()
                assert (found, others) == ((number, turn), (turn,))
    finally:
        for client in clients:
            client.close()


def test_statement_of_another_client_does_no_harm(bouncer: PgBouncer):
    """A client of another program has prepared a statement of psycopg's first name."""
    with psycopg.connect(bouncer.url, autocommit=True) as other:
        psycopg.Cursor(other).execute("SELECT 1", prepare=True)
        with limits.Connection.connect(bouncer.url, prepare_threshold=0) as pooled:
            assert pooled.execute("SELECT 2").fetchone() == (2,)


def test_late_statement_is_cancelled_through_the_pooler(bouncer: PgBouncer):
    with limits.Connection.connect(bouncer.url, autocommit=True) as pooled:
        with limits.statements(0.3), pytest.raises(psycopg.errors.QueryCanceled):
            pooled.execute("SELECT pg_sleep(30)")
        assert pooled.execute("SELECT 1").fetchone() == (1,)


def test_silent_postgres_does_not_end_the_pooler(server_folder):
    """PgBouncer 1.18 ends when the connection of a cancel request is closed before its server answers."""
    server = PostgresServer(server_folder / "postgres")
    server.start()
    bouncer = PgBouncer(server_folder, server.url, sessions=SESSIONS)
    bouncer.start()
    clients = [limits.Connection.connect(bouncer.url) for _ in range(SESSIONS)]

    def late(client: limits.Connection) -> None:
        with limits.statements(0.3), pytest.raises(psycopg.OperationalError):
            client.execute("SELECT 1")

    try:
        for client in clients:
            client.execute("SELECT 1")  # in a transaction, so that each has a session
        frozen = [server.pid, *children(server.pid)]
        for pid in frozen:
            os.kill(pid, signal.SIGSTOP)
        with ThreadPoolExecutor(SESSIONS) as pool:
            list(pool.map(late, clients))
        for pid in frozen:
            os.kill(pid, signal.SIGCONT)
        with limits.Connection.connect(bouncer.url) as pooled:
            assert pooled.execute("SELECT 1").fetchone() == (1,)
        assert bouncer.is_running
    finally:
        bouncer.stop()
        server.stop()


def test_statement_that_finds_no_session_ends_in_time(bouncer: PgBouncer):
    """All sessions are taken; the connection that waits for one may be lost, the next one works."""
    busy = [psycopg.connect(bouncer.url) for _ in range(SESSIONS)]
    waiting = limits.Connection.connect
    for one in busy:
        one.execute("SELECT 1")  # in a transaction
    began = time.monotonic()
    with limits.statements(0.5), pytest.raises(psycopg.OperationalError):
        waiting(bouncer.url, autocommit=True, prepare_threshold=0)
    assert time.monotonic() - began < 0.5 + 2 * limits.CANCEL + 5
    for one in busy:
        one.close()
    with waiting(bouncer.url, autocommit=True, prepare_threshold=0) as pooled:
        assert pooled.execute("SELECT 1").fetchone() == (1,)


def test_time_zone_of_a_connection_is_kept(bouncer: PgBouncer):
    """The one setting of the session that Django sets. PgBouncer gives it to each session."""
    settings = {**connection.settings_dict, "OPTIONS": {}, "PORT": str(bouncer.port)}
    names = ["UTC", "Europe/Berlin"]
    clients = [DatabaseWrapper({**settings, "TIME_ZONE": name}) for name in names]
    try:
        for _ in range(SESSIONS * 2):
            for name, client in zip(names, clients, strict=True):
                with client.cursor() as cursor:
                    cursor.execute("SHOW TimeZone")
                    assert cursor.fetchone() == (name,)
    finally:
        for client in clients:
            client.close()


def test_iterators_need_no_session(bouncer: PgBouncer, owner: User):
    """A cursor of the server would be lost with its session, also one of the admin's choices."""
    another = User.objects.create_user("another@example.org")
    settings = {**connection.settings_dict, "PORT": str(bouncer.port)}
    settings["OPTIONS"] = {"prepare_threshold": None}
    connections["pooled"] = DatabaseWrapper(settings, "pooled")
    try:
        users = User.objects.using("pooled").order_by("pk").iterator(chunk_size=1)
        found = [next(users)]
        busy = [psycopg.connect(bouncer.url) for _ in range(SESSIONS - 1)]
        for one in busy:
            one.execute("SELECT 1")  # in a transaction: the next statement has another session
        found += users
        for one in busy:
            one.close()
    finally:
        connections["pooled"].close()
        del connections["pooled"]
    assert found == [owner, another]


# --- The processes -------------------------------------------------------------------------------


@pytest.fixture
async def site(owner: User, provider: FakeLLM, server_folder, bouncer) -> AsyncIterator[Stack]:
    with Stack(
        server_folder, provider_url=provider.url, environment={"DATABASE_URL": bouncer.url}
    ) as stack:
        await asyncio.to_thread(stack.start, "web", "worker", "clock", "clock-2")
        yield stack


async def working_clock(stack: Stack) -> str:
    """The name of the clock that works, as soon as there is one."""
    async with asyncio.timeout(60):
        while True:
            found = await db.run(leader, "clock")
            for name in ("clock", "clock-2"):
                if found and found.is_alive and f":{stack.pid(name)}:" in found.name:
                    return name
            await asyncio.sleep(0.05)


@pytest.mark.long
async def test_killed_clock_and_worker_cost_no_reply(site: Stack, owner: User, provider: FakeLLM):
    """Under load, another clock works within ten seconds, and finds the runs of the dead worker."""
    first = await working_clock(site)
    session = await db.run(session_key, owner)
    texts = [f"[[tokens=20 rate=5]] {number}" for number in range(TABS)]
    tabs = [LiveTab(site, session) for _ in texts]
    async with asyncio.timeout(150):
        chats = [
            asyncio.create_task(tab.chat(text, client_id=f"c{number}"))
            for number, (tab, text) in enumerate(zip(tabs, texts, strict=True))
        ]
        while not any(tab.text for tab in tabs):
            await asyncio.sleep(0.02)
        await asyncio.to_thread(site.kill, first)
        killed_at = time.monotonic()
        await asyncio.to_thread(site.kill, "worker")
        await asyncio.to_thread(site.launch, "worker")
        second = {"clock": "clock-2", "clock-2": "clock"}[first]
        while True:
            found = await db.run(leader, "clock")
            if found.is_alive and f":{site.pid(second)}:" in found.name:
                break
            await asyncio.sleep(0.05)
        assert time.monotonic() - killed_at < 10
        ends = await asyncio.gather(*chats)
    for text, end in zip(texts, ends, strict=True):
        assert (end["type"], end["text"]) == ("run.done", reply_text(20, text))
    assert max(end["attempt"] for end in ends) > 1
    assert await db.run(LedgerEntry.objects.filter(kind="usage").count) == TABS
    for name in ("web", "worker", second):
        log = site.log(name)
        assert " ERROR " not in log, log
        assert "prepared statement" not in log.replace("keep prepared statements", "")
