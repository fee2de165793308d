"""Another attempt: what a run keeps when its worker is gone, what its followers hear, who pays."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from billing.ledger import audit
from billing.models import Account, Hold, UsageRecord
from chat.generation import generate, jobs
from chat.llm.provider import close_provider
from chat.models import LanguageModel, MessagePart, Run
from chat.protocol import first_seq
from chat.recovery import sweeper
from chat.runs import handover, queue
from chat.runs.stop import stop_run
from chat.streaming import log as run_log
from chat.streaming.leases import lease_key
from chat.streaming.ticker import current_ticker
from chatproject.lib import db, rq_asyncio
from tests.chaos.test_money_faults import locked, wait_for_a_settlement_that_waits
from tests.chat.generation.test_generate import fresh, log, until
from tests.support.conversations import send
from tests.support.fake_llm import reasoning_text, reply_text

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("worker_loop"),
]

TEXT = "[[tokens=40 rate=0 hold=10 key=first]]"


@pytest.fixture(params=["", "prefill", "prefix", "vllm"])
def continuation(request, assistant) -> str:
    """A way of going on, which the model of this test has."""
    LanguageModel.objects.update(continuation=request.param)
    return str(request.param)


async def lose(run: Run, provider, valkey_client) -> str:
    """Begin a run and let its worker die after a few tokens; returns the text that was written."""
    making = asyncio.create_task(generate.run(run.id, run.attempt + 1))
    await asyncio.to_thread(provider.wait, held=1)
    writer = current_ticker()._writers[run.id]
    await until(lambda: bool(run_log.read_reply(run.pk, writer.attempt).text))
    # As dead as a task can be: it neither ends the run nor hands it over.
    writer.mark_lost()
    current_ticker().forget(writer)
    await asyncio.wait_for(making, 10)
    valkey_client.delete(lease_key(run.pk))
    await asyncio.to_thread(provider.release, "first")
    return run_log.read_reply(run.pk, writer.attempt).text


async def test_another_attempt_ends_a_lost_run_with_the_whole_reply(
    owner, conversation, provider, valkey_client, continuation
):
    run = await db.run(send, owner, conversation, TEXT)
    partial = await lose(run, provider, valkey_client)
    assert reply_text(40, TEXT).startswith(partial)
    await db.run(sweeper.recover, [(run.pk, 1)])
    run = await db.run(fresh, run.pk)
    assert (run.status, run.attempt) == ("queued", 1)
    assert run.prefix == (partial if continuation else "")

    await generate.run(run.id, 2)
    run = await db.run(fresh, run.pk)
    assert (run.status, run.attempt, run.prefix) == ("done", 2, "")
    assert run.message.text == reply_text(40, TEXT)

    told = log(valkey_client, run.pk)
    restart = next(event for event in told if event["type"] == "run.restarted")
    assert restart["seq"] == first_seq(2)
    assert restart.get("text", "") == (partial if continuation else "")
    deltas = [e["text"] for e in told if e["type"] == "text.delta" and e["attempt"] == 2]
    assert restart.get("text", "") + "".join(deltas) == run.message.text


async def test_a_model_is_asked_to_go_on_in_its_own_way(
    owner, conversation, provider, valkey_client, continuation
):
    run = await db.run(send, owner, conversation, TEXT)
    partial = await lose(run, provider, valkey_client)
    await db.run(sweeper.recover, [(run.pk, 1)])
    await generate.run(run.id, 2)
    first, second = provider.requests
    last = second["messages"][-1]
    if not continuation:
        assert second == first
        return
    assert (last["role"], last["content"]) == ("assistant", partial)
    assert last.get("prefix", False) is (continuation == "prefix")
    assert second.get("continue_final_message", False) is (continuation == "vllm")
    assert second["messages"][:-1] == first["messages"]
    assert second["max_tokens"] < first["max_tokens"]


async def test_the_lost_attempt_is_the_operators_cost_and_the_run_is_charged_once(
    owner, conversation, provider, valkey_client
):
    run = await db.run(send, owner, conversation, TEXT)
    await lose(run, provider, valkey_client)
    await db.run(sweeper.recover, [(run.pk, 1)])
    assert await db.run(lambda: Hold.objects.get().status) == Hold.Status.ACTIVE
    await generate.run(run.id, 2)

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


async def test_used_up_attempts_end_the_run_and_charge_what_was_delivered(
    owner, conversation, provider, valkey_client, settings
):
    settings.RUN_ATTEMPTS = 2
    run = await db.run(send, owner, conversation, TEXT)
    await lose(run, provider, valkey_client)
    await db.run(sweeper.recover, [(run.pk, 1)])
    await asyncio.to_thread(provider.reset)
    partial = await lose(await db.run(fresh, run.pk), provider, valkey_client)
    await db.run(sweeper.recover, [(run.pk, 2)])

    def check() -> None:
        run = fresh(Run.objects.get().pk)
        assert (run.status, run.error_code, run.message.text) == ("failed", "unavailable", partial)
        assert run.charged
        assert list(UsageRecord.objects.order_by("attempt").values_list("charged", flat=True)) == [
            0,
            run.charged,
        ]
        assert not audit.check()

    await db.run(check)


async def test_a_drained_worker_hands_its_run_over_and_tells_nothing(
    owner, conversation, provider, valkey_client, continuation
):
    text = "[[tokens=40 rate=0 hold=10 reasoning=3 key=first]]"
    run = await db.run(send, owner, conversation, text)
    making = asyncio.create_task(jobs.generate(str(run.id), 1))
    await asyncio.to_thread(provider.wait, held=1)
    await until(lambda: bool(run_log.read_reply(run.pk, 1).text))
    making.cancel(rq_asyncio.DRAINED)
    await asyncio.wait_for(making, 10)
    await asyncio.to_thread(provider.wait, active=0)

    told = log(valkey_client, run.pk)
    assert {event["type"] for event in told} == {"run.started", "reasoning.delta", "text.delta"}
    run = await db.run(fresh, run.pk)
    assert (run.status, run.attempt) == ("queued", 1)
    assert await db.run(queue.position, run)

    await asyncio.to_thread(provider.release, "first")
    await generate.run(run.id, 2)
    run = await db.run(fresh, run.pk)
    assert (run.status, run.message.text) == ("done", reply_text(40, text))
    part = await db.run(MessagePart.objects.get, message=run.message)
    assert part.data["text"].startswith(reasoning_text(3, text))


async def test_a_run_that_was_asked_to_stop_before_its_worker_died_is_stopped(
    owner, conversation, provider, valkey_client
):
    run = await db.run(send, owner, conversation, TEXT)
    partial = await lose(run, provider, valkey_client)
    await db.run(lambda: stop_run(user=owner, run_id=run.pk))
    await db.run(sweeper.recover, [(run.pk, 1)])
    run = await db.run(fresh, run.pk)
    assert (run.status, run.message.text) == ("stopped", partial)
    assert run.charged


async def test_a_run_that_is_stopped_between_two_attempts_keeps_its_text(
    owner, conversation, provider, valkey_client, continuation
):
    run = await db.run(send, owner, conversation, TEXT)
    partial = await lose(run, provider, valkey_client)
    await db.run(sweeper.recover, [(run.pk, 1)])
    await db.run(lambda: stop_run(user=owner, run_id=run.pk))
    run = await db.run(fresh, run.pk)
    assert (run.status, run.message.text, run.charged) == ("stopped", partial, 0)
    assert log(valkey_client, run.pk)[-1]["type"] == "run.stopped"
    await generate.run(run.id, 2)
    assert len(provider.requests) == 1


async def test_a_log_that_is_lost_with_the_worker_costs_no_text_of_a_continued_reply(
    owner, conversation, provider, valkey_client
):
    await db.run(lambda: LanguageModel.objects.update(continuation="prefill"))
    run = await db.run(send, owner, conversation, TEXT)
    partial = await lose(run, provider, valkey_client)
    await db.run(sweeper.recover, [(run.pk, 1)])
    # The second worker dies too, and with it the log.
    work = await db.run(generate.claim, run.pk, 2)
    assert work is not None
    valkey_client.flushall()
    await db.run(sweeper.recover, [(run.pk, 2)])
    assert (await db.run(fresh, run.pk)).prefix == partial
    await generate.run(run.id, 3)
    run = await db.run(fresh, run.pk)
    assert (run.status, run.message.text) == ("done", reply_text(40, TEXT))


async def test_of_two_that_hand_a_run_over_one_does(owner, conversation, provider):
    run = await db.run(send, owner, conversation)
    await db.run(generate.claim, run.pk, 1)
    handed: list[Any] = await asyncio.gather(
        *(
            db.run(handover.hand_over, [handover.LostAttempt(run.pk, 1, "Half", "")])
            for _ in range(4)
        )
    )
    assert sum(len(one) for one in handed) == 1
    assert await db.run(UsageRecord.objects.count) == 1


async def test_a_worker_that_wakes_after_its_run_was_handed_over_changes_nothing(
    owner, conversation, provider, valkey_client
):
    run = await db.run(send, owner, conversation, TEXT)
    making = asyncio.create_task(generate.run(run.id, 1))
    await asyncio.to_thread(provider.wait, held=1)
    await until(lambda: bool(run_log.read_reply(run.pk, 1).text))
    told = log(valkey_client, run.pk)
    # The sweeper takes it for dead while it only waits for the provider.
    valkey_client.delete(lease_key(run.pk))
    await db.run(sweeper.recover, [(run.pk, 1)])
    await asyncio.to_thread(provider.release, "first")
    await asyncio.wait_for(making, 10)
    run = await db.run(fresh, run.pk)
    assert (run.status, run.attempt) == ("queued", 1)
    await generate.run(run.id, 2)
    run = await db.run(fresh, run.pk)
    assert (run.status, run.message.text) == ("done", reply_text(40, TEXT))
    assert log(valkey_client, run.pk)[: len(told)] == told


async def test_a_provider_that_fails_the_second_attempt_leaves_the_text_of_the_first(
    owner, conversation, provider, valkey_client, settings
):
    await db.run(lambda: LanguageModel.objects.update(continuation="prefill"))
    run = await db.run(send, owner, conversation, TEXT)
    partial = await lose(run, provider, valkey_client)
    await db.run(sweeper.recover, [(run.pk, 1)])
    await close_provider()
    settings.OPENAI_BASE_URL = "http://127.0.0.1:9/v1"
    await generate.run(run.id, 2)
    run = await db.run(fresh, run.pk)
    assert (run.status, run.message.text, run.charged) == ("failed", partial, 0)


async def test_a_worker_that_must_end_while_it_stores_an_end_still_tells_it(
    owner, conversation, provider, valkey_client
):
    run = await db.run(send, owner, conversation, "[[tokens=5 rate=0]]")
    making = asyncio.create_task(generate.run(run.id, 1))
    account = await db.run(Account.objects.get, user=owner)
    with locked(account):
        await db.run(wait_for_a_settlement_that_waits)
        making.cancel(rq_asyncio.DRAINED)
        await asyncio.sleep(0.1)
        assert not making.done()
    await asyncio.wait_for(making, 10)
    assert (await db.run(fresh, run.pk)).status == "done"
    assert log(valkey_client, run.pk)[-1]["type"] == "run.done"


async def test_a_run_near_its_time_limit_is_noted(owner, conversation, caplog, settings):
    settings.RUN_SECONDS = 1
    run = await db.run(send, owner, conversation, "[[tokens=2 rate=0 first=0.85]]")
    await generate.run(run.id, 1)
    assert "of 1 s" in caplog.text
