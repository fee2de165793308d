"""The charge for each way in which a run can end: the table of docs/billing.md.

The provider is the local fake: the worker, the sweeper and the stop are the real ones.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import pytest

from billing.ledger import audit
from billing.models import Account, Hold, LedgerEntry, UsageRecord
from chat.generation import generate, jobs
from chat.llm.connections import current_connections
from chat.llm.tokens import typical_tokens
from chat.models import LanguageModel, Provider, Run
from chat.recovery import sweeper
from chat.runs.stop import stop_run
from chat.streaming import log as run_log
from chat.streaming.leases import accepted_attempts, accepted_key, lease_key, request_stop
from chat.streaming.ticker import current_ticker
from chatproject.lib import db, rq_asyncio
from tests.support.conversations import begin, send
from tests.support.fake_llm import (
    FakeLLM,
    parse_directives,
    reasoning_text,
    reply_pieces,
    reply_text,
)
from tests.support.runs import fresh, held_text, until
from tests.support.stack import Stack

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("worker_loop"),
]

STUB_PRICE = 20, 80  # micro-credits per token: in, out

# Directives of the provider for each end, after the tokens that it delivers before.
ENDS = {
    "done": "",
    "length": "finish=length",
    "filtered": "finish=content_filter",
    "provider error": "error={sent}",
    "user stop": "hold={held}",
    "timeout": "silent={held}",
    "lost worker": "hold={held}",
}
DELIVERED = {"nothing": (0, 0), "reasoning": (0, 6), "text": (8, 6)}  # tokens of text and reasoning

# Without an entry the user pays nothing. `True`: also with BILL_FAILED_PARTIAL=0.
CHARGED = {
    ("done", "text"): True,
    ("length", "text"): True,
    ("filtered", "text"): True,
    ("provider error", "text"): False,
    ("timeout", "text"): False,
    ("lost worker", "text"): False,
    ("user stop", "nothing"): True,
    ("user stop", "reasoning"): True,
    ("user stop", "text"): True,
}


@dataclass(frozen=True)
class Bill:
    """The rows of a run's end: its usage records add up to `charged` and `absorbed`."""

    charged: int
    absorbed: int
    source: str
    finish: str
    input: int
    output: int
    reasoning: int


def bill(run: Run) -> Bill:
    """Return the only bill of a run; the ledger, the hold and the run agree with it."""
    assert audit.check() == []
    record = UsageRecord.objects.get()
    assert record.run_id == run.pk
    assert record.cost == record.charged + record.absorbed
    hold = Hold.objects.get()
    assert (hold.status, hold.settled) == (
        ("settled", record.charged) if record.charged else ("released", 0)
    )
    spent = sum(LedgerEntry.objects.filter(kind="usage").values_list("amount", flat=True))
    assert -spent == record.charged == run.charged
    return Bill(
        record.charged,
        record.absorbed,
        record.source,
        record.finish,
        record.input_tokens,
        record.output_tokens,
        record.reasoning_tokens,
    )


def directives(end: str, delivered: str, is_reported: bool) -> str:
    """Return a message that makes the provider deliver so much and then end so."""
    text, reasoning = DELIVERED[delivered]
    # A hold and a fault happen after tokens of the reply, those of reasoning come before all.
    tokens = text if end in ("done", "length", "filtered") else text + 20
    fault = ENDS[end].format(sent=text, held=text)
    usage = f"report={text}" if is_reported else "nousage=1"
    return f"[[tokens={tokens} reasoning={reasoning} rate=0 {fault} {usage} key=end]]"


async def reach(end: str, run: Run, text: str, provider: FakeLLM, valkey_client: Any) -> None:
    """Let a queued run come to its end."""
    if end not in ("user stop", "lost worker"):
        await asyncio.wait_for(generate.run(run.pk, 1), 10)
        return
    generating = asyncio.create_task(generate.run(run.pk, 1))
    await asyncio.to_thread(provider.wait, held=1)
    await until(lambda: is_delivered(run, text))
    if end == "user stop":
        await db.run(stop_run, user=run.user, run_id=run.pk)
        await asyncio.wait_for(generating, 10)
        return
    await die(run, generating)
    valkey_client.delete(lease_key(run.pk))
    await db.run(sweeper.recover, [(run.pk, 1)])


def is_delivered(run: Run, text: str, attempt: int = 1) -> bool:
    """Return whether Redis has the acceptance and all that the provider sends before it holds."""
    asked = parse_directives(text)
    written = run_log.read_reply(run.pk, attempt)
    wanted = reply_text(asked.tokens, text)
    return (
        accepted_attempts([run.pk]) == {run.pk: attempt}
        and (not asked.hold or bool(written.text))
        and wanted.startswith(written.text)
        and written.reasoning == reasoning_text(asked.reasoning, text)
    )


async def die(run: Run, generating: asyncio.Task[Any]) -> None:
    """Let a run's worker die as far as a task can: it neither ends the run nor hands it over."""
    writer = current_ticker()._writers[run.pk]
    writer.mark_lost()
    current_ticker().forget(writer)
    await asyncio.wait_for(generating, 10)


@pytest.mark.parametrize("bills_partial", [True, False], ids=["partial", "free partial"])
@pytest.mark.parametrize("is_reported", [True, False], ids=["reported", "counted"])
@pytest.mark.parametrize(("end", "delivered"), list(product(ENDS, DELIVERED)))
async def test_end_is_charged_by_the_table(
    owner, conversation, provider, valkey_client, settings, end, delivered, is_reported,
    bills_partial,
):  # fmt: skip
    settings.BILL_FAILED_PARTIAL = bills_partial
    settings.RUN_ATTEMPTS = 1
    if end == "timeout":
        settings.RUN_SECONDS = 1
    text = directives(end, delivered, is_reported)
    run = await db.run(send, owner, conversation, text)
    await reach(end, run, text, provider, valkey_client)
    run = await db.run(fresh, run.pk)
    found = await db.run(bill, run)

    charges = CHARGED.get((end, delivered))
    if charges or (charges is False and bills_partial):
        assert (found.charged, found.absorbed) == (cost(found), 0)
    else:
        assert (found.charged, found.absorbed) == (0, cost(found))
    is_empty = delivered != "text" and end != "user stop"
    assert (found.finish == "empty") is is_empty
    # A dead worker takes the provider's report with it.
    is_lost = end == "lost worker"
    assert found.source == ("provider" if is_reported and not is_lost else "counted")
    assert found.input > 0
    reasoned = DELIVERED[delivered][1]
    assert (found.reasoning > 0) is bool(reasoned)
    assert (found.output > found.reasoning) is (delivered == "text")


def cost(found: Bill) -> int:
    return STUB_PRICE[0] * found.input + STUB_PRICE[1] * found.output


# --- Accepted, and then a stop -----------------------------------------------------------------


async def test_stop_before_acceptance_is_free(owner, conversation, provider, valkey_client):
    run = await db.run(send, owner, conversation, "[[tokens=5 headers=9]]")
    generating = asyncio.create_task(generate.run(run.pk, 1))
    await asyncio.to_thread(provider.wait, active=1)
    await db.run(stop_run, user=owner, run_id=run.pk)
    await asyncio.wait_for(generating, 5)
    await is_free(run)


async def is_free(run: Run) -> None:
    """Assert that nothing was charged, held or recorded."""

    def check() -> None:
        ended = fresh(run.pk)
        assert (ended.status, ended.charged) == ("stopped", 0)
        assert not UsageRecord.objects.exists()
        assert Hold.objects.get().status == "released"
        assert audit.check() == []

    await db.run(check)


async def test_stop_during_retry_is_free(owner, conversation, provider, valkey_client, caplog):
    """The provider accepted the first request and broke it off; the next one was not sent yet."""
    current_connections().open(Provider())._retry_delay = 60.0
    run = await db.run(send, owner, conversation, "[[tokens=5 rate=0 error=0]]")
    generating = asyncio.create_task(generate.run(run.pk, 1))
    await until(lambda: "try 2 follows" in caplog.text)
    await until(lambda: accepted_attempts([run.pk]) == {})
    await db.run(stop_run, user=owner, run_id=run.pk)
    await asyncio.wait_for(generating, 5)
    await is_free(run)


async def test_retry_that_is_accepted_is_charged(owner, conversation, provider, valkey_client):
    text = "[[tokens=5 rate=0 error=0 fail=1 hold=3 key=retry]]"
    current_connections().open(Provider())._retry_delay = 0.01
    run = await db.run(send, owner, conversation, text)
    generating = asyncio.create_task(generate.run(run.pk, 1))
    await until(lambda: is_delivered(run, text))
    await db.run(stop_run, user=owner, run_id=run.pk)
    await asyncio.wait_for(generating, 5)
    assert (await db.run(bill, await db.run(fresh, run.pk))).charged > 0


async def test_acceptance_survives_killed_worker(
    owner, conversation, provider, valkey_client, tmp_path
):
    """The worker is killed while the model thinks, and the user stops the run then."""
    run = await db.run(send, owner, conversation, "[[tokens=5 hold=0 key=think]]")
    with Stack(tmp_path, provider_url=provider.url) as stack:
        await asyncio.to_thread(stack.start, "worker")
        await until(lambda: accepted_attempts([run.pk]) == {run.pk: 1}, seconds=30)
        await asyncio.to_thread(stack.kill, "worker")
    await db.run(stop_run, user=owner, run_id=run.pk)
    await db.run(sweeper.recover, [(run.pk, 1)])
    run = await db.run(fresh, run.pk)
    found = await db.run(bill, run)
    assert run.status == "stopped"
    assert (found.finish, found.source, found.output) == ("stopped", "counted", 0)
    assert found.charged == STUB_PRICE[0] * run.prompt_estimate > 0
    assert not valkey_client.exists(accepted_key(run.pk))


async def test_lost_acceptance_is_stored_again(owner, conversation, provider, valkey_client):
    run = await db.run(send, owner, conversation, "[[tokens=5 hold=0 key=lost]]")
    generating = asyncio.create_task(generate.run(run.pk, 1))
    await until(lambda: accepted_attempts([run.pk]) == {run.pk: 1})
    valkey_client.flushall()
    await until(lambda: accepted_attempts([run.pk]) == {run.pk: 1})
    await asyncio.to_thread(provider.release, "lost")
    await asyncio.wait_for(generating, 10)
    assert not valkey_client.exists(accepted_key(run.pk))


async def test_operators_stop_before_first_word_is_free(
    owner, conversation, provider, valkey_client
):
    run = await db.run(send, owner, conversation, "[[tokens=5 hold=0 key=staff]]")
    generating = asyncio.create_task(generate.run(run.pk, 1))
    await until(lambda: accepted_attempts([run.pk]) == {run.pk: 1})
    generating.cancel(rq_asyncio.STOPPED)
    await asyncio.wait([generating], timeout=5)
    found = await db.run(bill, await db.run(fresh, run.pk))
    assert (found.charged, found.finish) == (0, "empty")


async def test_output_after_last_report_is_estimated(owner, conversation, provider, valkey_client):
    text = "[[tokens=20 rate=0 report=4 hold=12 key=report]]"
    run = await db.run(send, owner, conversation, text)
    generating = asyncio.create_task(generate.run(run.pk, 1))
    pieces = reply_pieces(20, text)
    await until(lambda: run_log.read_reply(run.pk, 1).text == "".join(pieces[:12]))
    await db.run(stop_run, user=owner, run_id=run.pk)
    await asyncio.wait_for(generating, 5)
    found = await db.run(bill, await db.run(fresh, run.pk))
    assert found.output == 4 + typical_tokens("".join(pieces[4:12]))
    assert found.source == "counted"


# --- Several attempts --------------------------------------------------------------------------

each_continuation = pytest.mark.parametrize("continuation", ["", "prefill", "prefix", "vllm"])


def bills() -> list[tuple[int, int, int, bool, str]]:
    """Attempt, input, output, whether it was charged, and end of each call."""
    assert audit.check() == []
    return [
        (one.attempt, one.input_tokens, one.output_tokens, one.charged > 0, one.finish)
        for one in UsageRecord.objects.order_by("attempt")
    ]


async def lose_first(run: Run, provider: FakeLLM, valkey_client: Any, key: str) -> None:
    """Let the worker of the first attempt die while the provider holds, and requeue the run."""
    generating = asyncio.create_task(generate.run(run.pk, 1))
    await asyncio.to_thread(provider.wait, held=1)
    held = held_text(await db.run(lambda: run.message.parent.text))
    await until(lambda: run_log.read_reply(run.pk, 1).text == held)
    await until(lambda: accepted_attempts([run.pk]) == {run.pk: 1})
    await die(run, generating)
    valkey_client.delete(lease_key(run.pk))
    await asyncio.to_thread(provider.release, key)
    await db.run(sweeper.recover, [(run.pk, 1)])


@pytest.mark.parametrize("is_stopped", [True, False], ids=["user stop", "lost worker"])
@each_continuation
async def test_inherited_prefix_is_billed_once(
    owner, conversation, provider, valkey_client, settings, continuation, is_stopped
):
    settings.RUN_ATTEMPTS = 2
    await db.run(LanguageModel.objects.update, continuation=continuation)
    text = "[[tokens=40 rate=0 hold=10 silent=20 nousage=1 key=first]]"
    pieces = reply_pieces(40, text)
    first, rest = "".join(pieces[:10]), "".join(pieces[10:20])
    run = await db.run(send, owner, conversation, text)
    await lose_first(run, provider, valkey_client, "first")

    generating = asyncio.create_task(generate.run(run.pk, 2))
    await until(lambda: run_log.read_reply(run.pk, 2).text == first + rest)
    await die(run, generating)
    valkey_client.delete(lease_key(run.pk))
    if is_stopped:
        await asyncio.to_thread(request_stop, run.pk)
    await db.run(sweeper.recover, [(run.pk, 2)])

    run = await db.run(fresh, run.pk)
    assert run.message.text == first + rest
    asked, counted = run.prompt_estimate, typical_tokens
    second = (
        (asked + counted(first), counted(rest)) if continuation else (asked, counted(first + rest))
    )
    finish = "stopped" if is_stopped else "failed"
    assert await db.run(bills) == [
        (1, asked, counted(first), False, "crashed"),
        (2, *second, True, finish),
    ]
    assert (run.prompt_tokens, run.completion_tokens) == second


@each_continuation
async def test_prefix_is_billed_once_after_kills(
    owner, conversation, provider, valkey_client, settings, tmp_path, continuation
):
    """The same with worker processes that are killed."""
    settings.RUN_ATTEMPTS = 2
    await db.run(LanguageModel.objects.update, continuation=continuation)
    text = "[[tokens=40 rate=0 hold=10 silent=20 nousage=1 key=first]]"
    pieces = reply_pieces(40, text)
    first, rest = "".join(pieces[:10]), "".join(pieces[10:20])
    run = await db.run(send, owner, conversation, text)
    with Stack(tmp_path, provider_url=provider.url) as stack:
        for attempt, written in ((1, first), (2, first + rest)):
            name = f"worker-{attempt}"
            await asyncio.to_thread(stack.start, name)
            await until(partial(is_logged, run, attempt, written), seconds=40)
            await asyncio.to_thread(stack.kill, name)
            await asyncio.to_thread(provider.release, "first")
            await db.run(sweeper.recover, [(run.pk, attempt)])
    asked, counted = run.prompt_estimate, typical_tokens
    second = (
        (asked + counted(first), counted(rest)) if continuation else (asked, counted(first + rest))
    )
    assert (await db.run(fresh, run.pk)).message.text == first + rest
    assert await db.run(bills) == [
        (1, asked, counted(first), False, "crashed"),
        (2, *second, True, "failed"),
    ]


def is_logged(run: Run, attempt: int, text: str) -> bool:
    """Return whether Redis has this text of a reply, and the acceptance of its request."""
    is_accepted = accepted_attempts([run.pk]) == {run.pk: attempt}
    return is_accepted and run_log.read_reply(run.pk, attempt).text == text


@pytest.mark.parametrize("held", [0, 10])
@each_continuation
async def test_stop_before_second_acceptance_charges_first(
    owner, conversation, provider, valkey_client, continuation, held
):
    await db.run(LanguageModel.objects.update, continuation=continuation)
    text = f"[[tokens=40 rate=0 hold={held} nousage=1 key=first]]"
    run = await db.run(send, owner, conversation, text)
    await lose_first(run, provider, valkey_client, "first")
    await db.run(generate.claim, run.pk, 2)
    await asyncio.to_thread(request_stop, run.pk)
    await db.run(sweeper.recover, [(run.pk, 2)])
    run = await db.run(fresh, run.pk)
    assert run.status == "stopped"
    used = run.prompt_estimate, typical_tokens(held_text(text))
    assert await db.run(bills) == [(1, *used, True, "stopped")]
    assert run.charged == STUB_PRICE[0] * used[0] + STUB_PRICE[1] * used[1]


@pytest.mark.parametrize("usage", ["report=0", "nousage=1"])
async def test_drained_attempt_without_word_is_recorded(
    owner, conversation, provider, valkey_client, usage
):
    text = f"[[tokens=8 reasoning=4 rate=0 hold=0 {usage} key=drain]]"
    run = await db.run(send, owner, conversation, text)
    generating = asyncio.create_task(jobs.generate(str(run.pk), 1))
    await until(lambda: is_delivered(run, text))
    generating.cancel(rq_asyncio.DRAINED)
    await asyncio.wait_for(generating, 10)
    await asyncio.to_thread(provider.release, "drain")
    assert await db.run(bills) == []
    await generate.run(run.pk, 2)
    (one, _, _, was_charged, finish), (two, _, _, is_charged, _) = await db.run(bills)
    assert (one, was_charged, finish) == (1, False, "crashed")
    assert (two, is_charged) == (2, True)


async def test_each_lost_attempt_is_recorded_once(owner, conversation, provider, valkey_client):
    text = "[[tokens=40 rate=0 hold=10 silent=20 key=first]]"
    run = await db.run(send, owner, conversation, text)
    await lose_first(run, provider, valkey_client, "first")
    generating = asyncio.create_task(generate.run(run.pk, 2))
    whole = "".join(reply_pieces(40, text)[:20])
    await until(lambda: run_log.read_reply(run.pk, 2).text == whole)
    await die(run, generating)
    valkey_client.delete(lease_key(run.pk))
    await db.run(sweeper.recover, [(run.pk, 2)])
    await db.run(stop_run, user=owner, run_id=run.pk)
    found = await db.run(bills)
    assert [(attempt, is_charged) for attempt, _, _, is_charged, _ in found] == [
        (1, False),
        (2, True),
    ]


# --- Races -------------------------------------------------------------------------------------


async def test_stop_at_any_moment_adds_up(owner, assistant, provider, valkey_client):
    """Stops at many moments of the request: each run is free, or pays for what was accepted."""
    texts = [f"[[tokens=30 rate=400 headers=0.05 reasoning=3]] {n}" for n in range(30)]
    runs = await db.run(lambda: [send(owner, begin(owner, assistant), text) for text in texts])

    async def stop_after(seconds: float, run: Run) -> None:
        await asyncio.sleep(seconds)
        await asyncio.to_thread(request_stop, run.pk)

    await asyncio.gather(
        *(generate.run(run.pk, 1) for run in runs),
        *(stop_after(0.005 * number, run) for number, run in enumerate(runs)),
    )

    def check() -> None:
        assert audit.check() == []
        records = {one.run_id: one for one in UsageRecord.objects.all()}
        for run in map(fresh, [run.pk for run in runs]):
            record = records.get(run.pk)
            assert (run.charged or 0) == (record.charged if record else 0)
            assert (record is None) == (run.prompt_tokens is None)
            assert record is not None or not run.message.text
        account = Account.objects.get(user=owner)
        assert account.held == 0

    await db.run(check)
