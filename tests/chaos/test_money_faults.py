"""Money under faults: a worker killed between the last byte and the settlement, or frozen."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from billing.ledger import audit
from billing.models import Account, Hold, LedgerEntry, UsageRecord
from chat.models import Run
from chatproject.lib import db
from tests.chaos.conftest import WHOLE, Talk
from tests.support.fake_llm import FakeLLM
from tests.support.locks import locked, wait_for_blocked_session

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("assistant", "valkey_url"),
    pytest.mark.timeout(180),
]


async def kill_worker_at_settlement(talk: Talk, provider: FakeLLM) -> None:
    """Let the provider finish, and kill the worker while its settlement waits for the account."""
    account = await db.run(Account.objects.get)
    with locked(account):
        await asyncio.to_thread(provider.release, "fault")
        await db.run(wait_for_blocked_session)
        await asyncio.to_thread(talk.stack.kill, "worker")


async def check_single_charge(end: dict[str, Any]) -> tuple[int | None, Hold]:
    """Check that the run was charged once, as its end says; return the amount and its hold."""
    run = await db.run(Run.objects.get, pk=end["run"])
    hold = await db.run(Hold.objects.get, key=f"run:{run.pk}")
    assert (hold.status, hold.settled) == ("settled", run.charged)
    assert end["cost"] == run.charged > 0
    assert await db.run(LedgerEntry.objects.filter(kind="usage").count) == 1
    assert await db.run(audit.check) == []
    return run.charged, hold


async def test_worker_killed_before_settlement_charges_once(talking, provider):
    async with talking("web", "worker", "clock", RUN_ATTEMPTS="1") as talk:
        await kill_worker_at_settlement(talk, provider)
        end = await talk.chat
    # The whole reply had been delivered; the sweeper published its end.
    assert (end["type"], end["text"]) == ("run.failed", WHOLE)
    charged, hold = await check_single_charge(end)
    assert hold.resolved_by == "sweeper"
    usage = await db.run(UsageRecord.objects.get, run_id=end["run"])
    assert (usage.charged, usage.source) == (charged, "counted")


async def test_frozen_worker_settles_nothing_after_waking(talking, provider):
    async with talking("web", "worker", "clock", RUN_ATTEMPTS="1") as talk:
        await asyncio.to_thread(talk.stack.pause, "worker")
        end = await talk.chat
        assert end["type"] == "run.failed"
        await asyncio.to_thread(provider.release, "fault")
        await asyncio.to_thread(talk.stack.go_on, "worker")
        await asyncio.to_thread(provider.wait, active=0)
        await asyncio.to_thread(talk.stack.terminate, "worker")
    await check_single_charge(end)


async def test_only_the_final_attempt_is_charged(talking, provider):
    async with talking("web", "worker", "clock") as talk:
        await kill_worker_at_settlement(talk, provider)
        await asyncio.to_thread(talk.stack.start, "worker")
        end = await talk.chat
    assert (end["type"], end["attempt"], end["text"]) == ("run.done", 2, WHOLE)
    charged, hold = await check_single_charge(end)
    assert hold.resolved_by == "worker"
    lost, whole = await db.run(lambda: list(UsageRecord.objects.order_by("attempt")))
    assert (lost.charged, lost.absorbed) == (0, lost.cost)
    assert (whole.charged, whole.source) == (charged, "provider")
