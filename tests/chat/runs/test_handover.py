"""Further attempts: text, events and charges of a run that lost its worker."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import pytest_asyncio

from billing.ledger import audit
from billing.models import Account, Hold, UsageRecord
from chat.generation import generate, jobs
from chat.models import LanguageModel, MessagePart, Run
from chat.protocol import first_seq
from chat.recovery import sweeper
from chat.runs import handover, queue
from chat.runs.stop import stop_run
from chat.streaming.leases import lease_key
from chat.streaming.ticker import current_ticker
from chatproject.lib import db, rq_asyncio
from tests.support.conversations import send
from tests.support.fake_llm import reasoning_text, reply_text
from tests.support.locks import locked, wait_for_blocked_session
from tests.support.runs import fresh, generate_until_hold, held_text, logged

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("worker_loop"),
]

TEXT = "[[tokens=40 rate=0 hold=10 key=first]]"
PARTIAL = held_text(TEXT)

each_continuation = pytest.mark.parametrize("continuation", ["", "prefill", "prefix", "vllm"])


@pytest.fixture
def continuation() -> str:
    """The way in which the model continues a reply; by default it begins again."""
    return ""


@pytest_asyncio.fixture
async def requeued(continuation, owner, conversation, provider, valkey_client, worker_loop) -> Run:
    """A run whose first worker died after PARTIAL, queued again."""
    await db.run(LanguageModel.objects.update, continuation=continuation)
    run = await db.run(send, owner, conversation, TEXT)
    await lose(run, provider, valkey_client)
    await db.run(sweeper.recover, [(run.pk, 1)])
    return await db.run(fresh, run.pk)


async def lose(run: Run, provider, valkey_client) -> None:
    """Begin the next attempt of a run and let its worker die after PARTIAL."""
    generating = await generate_until_hold(run, provider)
    writer = current_ticker()._writers[run.id]
    # As dead as a task can be: it neither ends the run nor hands it over.
    writer.mark_lost()
    current_ticker().forget(writer)
    await asyncio.wait_for(generating, 10)
    valkey_client.delete(lease_key(run.pk))
    await asyncio.to_thread(provider.release, "first")


@each_continuation
async def test_second_attempt_completes_reply(requeued, valkey_client, continuation):
    run = requeued
    assert (run.status, run.attempt) == ("queued", 1)
    assert run.prefix == (PARTIAL if continuation else "")

    await generate.run(run.id, 2)
    run = await db.run(fresh, run.pk)
    assert (run.status, run.attempt, run.prefix) == ("done", 2, "")
    assert run.message.text == reply_text(40, TEXT)

    events = logged(valkey_client, run.pk)
    restart = next(event for event in events if event["type"] == "run.restarted")
    assert restart["seq"] == first_seq(2)
    assert restart.get("text", "") == (PARTIAL if continuation else "")
    deltas = [e["text"] for e in events if e["type"] == "text.delta" and e["attempt"] == 2]
    assert restart.get("text", "") + "".join(deltas) == run.message.text


@each_continuation
async def test_model_continues_in_its_own_way(requeued, provider, continuation):
    await generate.run(requeued.id, 2)
    first, second = provider.requests
    last = second["messages"][-1]
    if not continuation:
        assert second == first
        return
    assert (last["role"], last["content"]) == ("assistant", PARTIAL)
    assert last.get("prefix", False) is (continuation == "prefix")
    assert second.get("continue_final_message", False) is (continuation == "vllm")
    assert second["messages"][:-1] == first["messages"]
    assert second["max_tokens"] < first["max_tokens"]


def records() -> list[tuple[int, int, int, str]]:
    """Attempt, charged and absorbed amount, and end of each call; the ledger is consistent."""
    assert not audit.check()
    fields = "attempt", "charged", "absorbed", "finish"
    return list(UsageRecord.objects.order_by("attempt").values_list(*fields))


async def test_operator_pays_for_lost_attempt(requeued):
    assert await db.run(lambda: Hold.objects.get().status) == Hold.Status.ACTIVE
    await generate.run(requeued.id, 2)

    def check() -> None:
        run = Run.objects.get()
        lost, whole = UsageRecord.objects.order_by("attempt")
        assert (lost.attempt, lost.charged, lost.finish) == (1, 0, "crashed")
        assert 0 < lost.absorbed == lost.cost < whole.cost
        assert (whole.attempt, whole.charged, whole.finish) == (2, run.charged, "complete")
        hold = Hold.objects.get()
        assert (hold.status, hold.settled) == (Hold.Status.SETTLED, run.charged)
        assert not audit.check()

    await db.run(check)


async def test_last_lost_attempt_charges_delivered_text(
    requeued, provider, valkey_client, settings
):
    settings.RUN_ATTEMPTS = 2
    await asyncio.to_thread(provider.reset)
    await lose(requeued, provider, valkey_client)
    await db.run(sweeper.recover, [(requeued.pk, 2)])

    def check() -> None:
        run = fresh(requeued.pk)
        assert (run.status, run.error_code, run.message.text) == ("failed", "unavailable", PARTIAL)
        assert run.charged
        charged = UsageRecord.objects.order_by("attempt").values_list("charged", flat=True)
        assert list(charged) == [0, run.charged]
        assert not audit.check()

    await db.run(check)


@each_continuation
async def test_drained_worker_requeues_run_silently(
    owner, conversation, provider, valkey_client, continuation
):
    await db.run(LanguageModel.objects.update, continuation=continuation)
    text = "[[tokens=40 rate=0 hold=10 reasoning=3 key=first]]"
    run = await db.run(send, owner, conversation, text)
    generating = await generate_until_hold(run, provider, jobs.generate(str(run.id), 1))
    generating.cancel(rq_asyncio.DRAINED)
    await asyncio.wait_for(generating, 10)
    await asyncio.to_thread(provider.wait, active=0)

    kinds = {event["type"] for event in logged(valkey_client, run.pk)}
    assert kinds == {"run.started", "reasoning.delta", "text.delta"}
    run = await db.run(fresh, run.pk)
    assert (run.status, run.attempt) == ("queued", 1)
    assert await db.run(queue.position, run)

    await asyncio.to_thread(provider.release, "first")
    await generate.run(run.id, 2)
    run = await db.run(fresh, run.pk)
    assert (run.status, run.message.text) == ("done", reply_text(40, text))
    part = await db.run(MessagePart.objects.get, message=run.message)
    assert part.data["text"].startswith(reasoning_text(3, text))


async def test_stop_before_worker_died_stops_run(owner, conversation, provider, valkey_client):
    run = await db.run(send, owner, conversation, TEXT)
    await lose(run, provider, valkey_client)
    await db.run(stop_run, user=owner, run_id=run.pk)
    await db.run(sweeper.recover, [(run.pk, 1)])
    run = await db.run(fresh, run.pk)
    assert (run.status, run.message.text) == ("stopped", PARTIAL)
    assert run.charged


@each_continuation
async def test_stop_between_attempts_charges_kept_text(requeued, owner, provider, valkey_client):
    await db.run(stop_run, user=owner, run_id=requeued.pk)
    run = await db.run(fresh, requeued.pk)
    assert (run.status, run.message.text) == ("stopped", PARTIAL)
    assert await db.run(records) == [(1, run.charged, 0, "stopped")]
    assert run.charged
    assert logged(valkey_client, run.pk)[-1]["type"] == "run.stopped"
    await generate.run(run.id, 2)
    assert len(provider.requests) == 1


@pytest.mark.parametrize("continuation", ["prefill"])
async def test_continued_reply_survives_lost_log(requeued, valkey_client):
    # The second worker dies too, and the log is lost with it.
    assert await db.run(generate.claim, requeued.pk, 2) is not None
    valkey_client.flushall()
    await db.run(sweeper.recover, [(requeued.pk, 2)])
    assert (await db.run(fresh, requeued.pk)).prefix == PARTIAL
    await generate.run(requeued.id, 3)
    run = await db.run(fresh, requeued.pk)
    assert (run.status, run.message.text) == ("done", reply_text(40, TEXT))


async def test_concurrent_handovers_have_one_effect(owner, conversation):
    run = await db.run(send, owner, conversation)
    await db.run(generate.claim, run.pk, 1)
    handed: list[Any] = await asyncio.gather(
        *(
            db.run(handover.hand_over, [handover.LostAttempt(run.pk, 1, "Half", "")])
            for _ in range(4)
        )
    )
    assert sum(len(one) for one in handed) == 1
    await generate.run(run.id, 2)
    assert [attempt for attempt, *_ in await db.run(records)] == [1, 2]


async def test_worker_that_wakes_after_handover_changes_nothing(
    owner, conversation, provider, valkey_client
):
    run = await db.run(send, owner, conversation, TEXT)
    generating = await generate_until_hold(run, provider)
    events = logged(valkey_client, run.pk)
    # The sweeper takes it for dead while it only waits for the provider.
    valkey_client.delete(lease_key(run.pk))
    await db.run(sweeper.recover, [(run.pk, 1)])
    await asyncio.to_thread(provider.release, "first")
    await asyncio.wait_for(generating, 10)
    run = await db.run(fresh, run.pk)
    assert (run.status, run.attempt) == ("queued", 1)
    await generate.run(run.id, 2)
    run = await db.run(fresh, run.pk)
    assert (run.status, run.message.text) == ("done", reply_text(40, TEXT))
    assert logged(valkey_client, run.pk)[: len(events)] == events


@pytest.mark.parametrize("continuation", ["prefill"])
async def test_failed_second_attempt_keeps_first_text(requeued, settings):
    settings.OPENAI_BASE_URL = "http://127.0.0.1:9/v1"
    await generate.run(requeued.id, 2)
    run = await db.run(fresh, requeued.pk)
    assert (run.status, run.message.text, run.charged) == ("failed", PARTIAL, 0)


async def test_drained_worker_publishes_end_being_stored(owner, conversation, valkey_client):
    run = await db.run(send, owner, conversation, "[[tokens=5 rate=0]]")
    generating = asyncio.create_task(generate.run(run.id, 1))
    account = await db.run(Account.objects.get, user=owner)
    with locked(account):
        await db.run(wait_for_blocked_session)
        generating.cancel(rq_asyncio.DRAINED)
        await asyncio.sleep(0.1)
        assert not generating.done()
    await asyncio.wait_for(generating, 10)
    assert (await db.run(fresh, run.pk)).status == "done"
    assert logged(valkey_client, run.pk)[-1]["type"] == "run.done"


async def test_run_near_time_limit_is_logged(owner, conversation, caplog, settings):
    settings.RUN_SECONDS = 1
    run = await db.run(send, owner, conversation, "[[tokens=2 rate=0 first=0.85]]")
    await generate.run(run.id, 1)
    assert "of 1 s" in caplog.text
