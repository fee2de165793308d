"""Money when things die: a worker between the last byte and the settlement, Postgres in the middle."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from django.db import connection, transaction

from billing.ledger import audit
from billing.models import Account, Hold, LedgerEntry, UsageRecord
from chat.models import Run
from chatproject.lib import db
from tests.support.fake_llm import reply_text
from tests.support.people import session_key
from tests.support.reconnecting_client import LiveTab
from tests.support.stack import Stack

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("assistant", "valkey_url"),
    pytest.mark.timeout(180),
]

TEXT = "[[tokens=60 rate=0 hold=10 key=money]]"


@contextmanager
def locked(account: Account) -> Iterator[None]:
    """Keep an account's row locked by another session, so that whoever settles has to wait."""
    is_locked, may_go = threading.Event(), threading.Event()

    def hold_lock() -> None:
        try:
            with transaction.atomic():
                Account.objects.select_for_update().get(pk=account.pk)
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


def wait_for_a_settlement_that_waits() -> None:
    """Until a session of another process waits for a lock."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT count(*) FROM pg_stat_activity"
                " WHERE datname = current_database() AND wait_event_type = 'Lock'"
            )
            if cursor.fetchone()[0]:
                return
        time.sleep(0.02)
    raise AssertionError("nobody waits for the account")


async def test_a_worker_killed_between_the_last_byte_and_the_settlement_charges_once(
    owner, provider, server_folder
):
    once = {"RUN_ATTEMPTS": "1"}
    with Stack(server_folder, provider_url=provider.url, environment=once) as stack:
        await asyncio.to_thread(stack.start, "web", "worker", "clock")
        tab = LiveTab(stack, await db.run(session_key, owner))
        async with asyncio.timeout(120):
            chat = asyncio.create_task(tab.chat(TEXT))
            await tab.until("text.delta")
            account = await db.run(Account.objects.get, user=owner)
            with locked(account):
                await asyncio.to_thread(provider.release, "money")
                await db.run(wait_for_a_settlement_that_waits)
                await asyncio.to_thread(stack.kill, "worker")
            end = await chat
    # All of the reply had been delivered; only its end was told by the sweeper.
    assert (end["type"], end["text"]) == ("run.failed", reply_text(60, TEXT))
    run = await db.run(Run.objects.get, pk=end["run"])
    hold = await db.run(Hold.objects.get, key=f"run:{run.pk}")
    assert (hold.status, hold.settled, hold.resolved_by) == ("settled", run.charged, "sweeper")
    assert end["cost"] == run.charged > 0
    usage = await db.run(UsageRecord.objects.get, run_id=run.pk)
    assert (usage.charged, usage.source) == (run.charged, "counted")
    assert await db.run(LedgerEntry.objects.filter(kind="usage").count) == 1
    assert await db.run(audit.check) == []


async def test_a_worker_that_was_given_up_settles_nothing_when_it_wakes(
    owner, provider, server_folder
):
    once = {"RUN_ATTEMPTS": "1"}
    with Stack(server_folder, provider_url=provider.url, environment=once) as stack:
        await asyncio.to_thread(stack.start, "web", "worker", "clock")
        tab = LiveTab(stack, await db.run(session_key, owner))
        async with asyncio.timeout(120):
            chat = asyncio.create_task(tab.chat(TEXT))
            await tab.until("text.delta")
            await asyncio.to_thread(stack.pause, "worker")
            end = await chat
            assert end["type"] == "run.failed"
            await asyncio.to_thread(provider.release, "money")
            await asyncio.to_thread(stack.go_on, "worker")
            await asyncio.to_thread(provider.wait, active=0)
            await asyncio.to_thread(stack.terminate, "worker")
    run = await db.run(Run.objects.get, pk=end["run"])
    assert run.charged == end["cost"]
    assert await db.run(LedgerEntry.objects.filter(kind="usage").count) == 1
    assert await db.run(audit.check) == []


async def test_the_attempt_that_ends_a_run_is_charged_and_the_lost_one_is_not(
    owner, provider, server_folder
):
    with Stack(server_folder, provider_url=provider.url) as stack:
        await asyncio.to_thread(stack.start, "web", "worker", "clock")
        tab = LiveTab(stack, await db.run(session_key, owner))
        async with asyncio.timeout(120):
            chat = asyncio.create_task(tab.chat(TEXT))
            await tab.until("text.delta")
            account = await db.run(Account.objects.get, user=owner)
            with locked(account):
                await asyncio.to_thread(provider.release, "money")
                await db.run(wait_for_a_settlement_that_waits)
                await asyncio.to_thread(stack.kill, "worker")
            await asyncio.to_thread(stack.start, "worker")
            end = await chat
    assert (end["type"], end["attempt"], end["text"]) == ("run.done", 2, reply_text(60, TEXT))
    run = await db.run(Run.objects.get, pk=end["run"])
    hold = await db.run(Hold.objects.get, key=f"run:{run.pk}")
    assert (hold.status, hold.settled, hold.resolved_by) == ("settled", run.charged, "worker")
    lost, whole = await db.run(lambda: list(UsageRecord.objects.order_by("attempt")))
    assert (lost.charged, lost.absorbed) == (0, lost.cost)
    assert (whole.charged, whole.source) == (run.charged, "provider")
    assert end["cost"] == run.charged > 0
    assert await db.run(LedgerEntry.objects.filter(kind="usage").count) == 1
    assert await db.run(audit.check) == []
