"""The money of runs that call tools: one hold that grows, one charge of all steps, fees of calls once."""

from __future__ import annotations

import asyncio

import pytest
import pytest_asyncio
from django.db.models import Sum

from billing.ledger import audit
from billing.models import Account, Hold, LedgerEntry, UsageRecord
from chat.generation import generate
from chat.models import Run
from chat.runs import handover
from chatproject.lib import db
from tests.support.conversations import send
from tests.support.effects import FEE, make, parts_of
from tests.support.money import set_available
from tests.support.runs import fresh

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("worker_loop", "with_tools"),
]


@pytest_asyncio.fixture(autouse=True)
async def ledger_is_consistent(assistant):
    yield
    assert await db.run(audit.check) == []


def charges(run: Run) -> tuple[int, int, int]:
    """Return what the records of a run and the entries of its owner say that it cost, and what is held."""
    records = UsageRecord.objects.filter(run_id=run.pk).aggregate(sum=Sum("charged"))["sum"]
    entries = LedgerEntry.objects.filter(account__user=run.user_id, kind=LedgerEntry.Kind.USAGE)
    return records, -entries.aggregate(sum=Sum("amount"))["sum"], account(run).held


def account(run: Run) -> Account:
    return Account.objects.get(user=run.user_id)


async def test_fee_of_each_finished_call_is_charged_once(owner, conversation, effects):
    run = await make(owner, conversation, "[[use=buy&buy;broken;buy said=2 tokens=8 rate=0]]")
    assert (run.status, len(effects.bought)) == ("done", 3)
    records, entries, held = await db.run(charges, run)
    assert records == entries == run.charged
    assert 3 * FEE < run.charged < 4 * FEE
    assert held == 0
    steps = UsageRecord.objects.filter(run_id=run.pk).values_list("step", flat=True)
    assert await db.run(lambda: len(steps) == len(set(steps)) == 7)  # four requests, three fees
    assert await db.run(LedgerEntry.objects.filter(kind=LedgerEntry.Kind.USAGE).count) == 1
    assert await db.run(Hold.objects.count) == 1


async def test_uncovered_fee_is_refused_to_the_model(owner, conversation, effects, provider):
    await db.run(set_available, owner, FEE // 2)
    run = await make(owner, conversation, "[[use=buy said=2 tokens=8 rate=0]]")
    assert (run.status, effects.bought) == ("done", [])
    [part] = await db.run(parts_of, run)
    assert (part["status"], part["summary"]) == (
        "failed",
        "Your credits do not cover this tool.",
    )
    assert 0 < run.charged < FEE // 2


async def test_parallel_fees_do_not_share_their_cover(owner, conversation, effects):
    await db.run(set_available, owner, FEE + FEE // 2)
    run = await make(owner, conversation, "[[use=buy&buy&buy said=2 tokens=8 rate=0]]")
    assert (run.status, len(effects.bought)) == ("done", 1)
    statuses = [one["status"] for one in await db.run(parts_of, run)]
    assert sorted(statuses) == ["done", "failed", "failed"]
    assert FEE < run.charged <= FEE + FEE // 2


async def test_uncovered_step_ends_run_with_its_text(owner, conversation, provider):
    await db.run(set_available, owner, 150_000)
    text = '[[use=leak:{"length":20000} said=5 tokens=8 rate=0]]'
    run = await make(owner, conversation, text)
    assert (run.status, run.error_code) == ("failed", "insufficient_credits")
    assert run.message.text.strip()
    assert len(provider.requests) == 1
    records, entries, held = await db.run(charges, run)
    assert 0 < records == entries == run.charged <= 150_000
    assert held == 0
    assert (await db.run(account, run)).available >= 0


async def test_uncovered_first_step_costs_nothing(owner, conversation, provider):
    await db.run(set_available, owner, 30_000)
    run = await make(owner, conversation, "[[use=buy said=5 tokens=8 rate=0]]")
    assert (run.status, run.error_code, run.charged) == ("failed", "insufficient_credits", 0)
    assert "do not cover this message" in run.error_message
    assert provider.requests == []


async def test_hold_grows_with_the_prompts_of_steps(owner, conversation):
    text = '[[use=leak:{"length":9000};leak:{"length":9000} said=5 tokens=8 rate=0]]'
    run = await db.run(send, owner, conversation, text)
    held = (await db.run(fresh, run.pk)).most
    await generate.run(run.pk, 1)
    run = await db.run(fresh, run.pk)
    assert run.status == "done"
    hold = await db.run(Hold.objects.get)
    assert held < hold.amount == run.most
    assert hold.settled == run.charged


async def test_lost_attempts_are_charged_once(owner, conversation, effects):
    run = await db.run(send, owner, conversation, "[[use=buy;wait said=2 tokens=8 rate=0]]")
    first = asyncio.create_task(generate.run(run.id, 1))
    assert await asyncio.to_thread(effects.waiting.acquire, timeout=10)
    [again] = await db.run(handover.hand_over, [handover.LostAttempt(run.pk, 1, "", "")])
    assert again.status == "queued"
    effects.may_go_on.set()
    await generate.run(run.id, 2)
    await first
    run = await db.run(fresh, run.pk)
    assert (run.status, len(effects.bought)) == ("done", 1)
    records, entries, held = await db.run(charges, run)
    assert records == entries == run.charged
    assert FEE < run.charged < 2 * FEE
    assert held == 0
