"""A worker makes a reply, against the stub provider, on the real Postgres and Valkey."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import msgspec
import pytest
import redis

from chat import protocol
from chat.conversations import prompt_builder
from chat.generation import generate
from chat.generation.reply import Reply
from chat.llm.decoder import TextDelta
from chat.models import Conversation, Message, MessagePart, Run
from chat.recovery import sweeper
from chat.runs import finish, start
from chat.runs.stop import stop_run
from chat.streaming import log as run_log
from chat.streaming import ticker
from chat.streaming.leases import RENEW_SECONDS, lease_key, request_stop, stop_key
from chat.streaming.ticker import current_ticker
from chat.streaming.writer import RunWriter
from chatproject.lib import db, rq_asyncio
from tests.support.conversations import client_id, send
from tests.support.fake_llm import reasoning_text, reply_pieces, reply_text

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("worker_loop"),
]


async def make(owner, conversation, text="[[tokens=30 rate=0]]") -> Run:
    """Send a message and make its reply here; returns the run as it ended."""
    run = await db.run(send, owner, conversation, text)
    await generate.run(run.id, 1)
    return await db.run(fresh, run.pk)


def fresh(pk) -> Run:
    return Run.objects.select_related("message", "conversation").get(pk=pk)


def log(client: redis.Redis, run_id) -> list[dict[str, Any]]:
    entries: Any = client.xrange(run_log.log_key(run_id))
    return [msgspec.json.decode(fields[b"e"]) for _, fields in entries]


async def test_a_reply_is_stored_whole(owner, conversation, provider):
    run = await make(owner, conversation)
    assert run.status == "done"
    assert run.message.text == reply_text(30, "[[tokens=30 rate=0]]")
    assert run.message.html
    assert run.message.status == "done"
    assert run.completion_tokens == 30
    assert run.finish_reason == "stop"
    assert not run.usage_estimated
    assert run.started_at <= run.first_token_at <= run.ended_at


async def test_the_log_tells_it_in_order_and_ends_with_the_end(owner, conversation, valkey_client):
    run = await make(owner, conversation, "[[tokens=40 rate=200]]")
    told = log(valkey_client, run.pk)
    assert [event["seq"] for event in told] == list(range(1, len(told) + 1))
    assert told[0]["type"] == "run.started"
    assert told[-1]["type"] == "run.done"
    assert run.seq == told[-1]["seq"]
    deltas = [event["text"] for event in told if event["type"] == "text.delta"]
    assert len(deltas) > 1
    assert "".join(deltas) == run.message.text == told[-1]["text"]


async def test_some_events_tell_when_they_were_written(owner, conversation, valkey_client):
    began = time.time() * 1000
    run = await make(owner, conversation, "[[tokens=60 rate=100]]")
    timed = {e["seq"]: e["t"] for e in log(valkey_client, run.pk) if "t" in e}
    assert timed
    assert all(seq % 10 == 0 for seq in timed)
    assert all(began - 1 <= t <= time.time() * 1000 for t in timed.values())


async def test_no_key_of_a_run_stays_for_ever(owner, conversation, valkey_client):
    run = await make(owner, conversation)
    assert 0 < valkey_client.ttl(run_log.log_key(run.pk)) <= run_log.ENDED_LOG_SECONDS
    assert not valkey_client.exists(lease_key(run.pk), stop_key(run.pk))


async def test_reasoning_is_kept_apart_from_the_text(owner, conversation, valkey_client):
    text = "[[tokens=10 rate=0 reasoning=5]]"
    run = await make(owner, conversation, text)
    part = await db.run(MessagePart.objects.get, message=run.message)
    assert part.data["text"] == reasoning_text(5, text)
    assert run.message.text == reply_text(10, text)
    kinds = [event["type"] for event in log(valkey_client, run.pk)]
    assert kinds.index("reasoning.delta") < kinds.index("text.delta")


async def test_the_provider_is_told_the_path_and_nothing_twice(owner, conversation, provider):
    await make(owner, conversation, "First [[tokens=3 rate=0]]")
    await db.run(conversation.refresh_from_db)
    await make(owner, conversation, "Second [[tokens=3 rate=0]]")
    messages = provider.requests[-1]["messages"]
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user"]
    assert messages[0]["content"] == "Be brief."
    assert messages[1]["content"].startswith("First")
    assert messages[3]["content"].startswith("Second")


async def test_usage_is_counted_here_when_the_provider_sends_none(owner, conversation):
    run = await make(owner, conversation, "[[tokens=10 rate=0 nousage=1]]")
    assert run.usage_estimated
    assert run.completion_tokens > 0
    assert run.prompt_tokens > 0


# --- Claim ------------------------------------------------------------------------------------


async def test_of_two_jobs_for_an_attempt_one_makes_the_reply(owner, conversation, provider):
    run = await db.run(send, owner, conversation, "[[tokens=10 rate=0]]")
    await asyncio.gather(generate.run(run.id, 1), generate.run(run.id, 1))
    assert len(provider.requests) == 1
    assert (await db.run(fresh, run.pk)).attempt == 1


async def test_a_run_that_was_stopped_in_the_queue_is_not_made(owner, conversation, provider):
    run = await db.run(send, owner, conversation)
    await db.run(stop_run, user=owner, run_id=run.pk)
    await generate.run(run.id, 1)
    assert provider.requests == []
    assert (await db.run(fresh, run.pk)).status == "stopped"


# --- Stop -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["[[tokens=50 hold=0 key=stop]]", "[[tokens=50 rate=0 hold=5 key=stop]]"]
)
async def test_a_run_stops_before_and_after_its_first_token(owner, conversation, provider, text):
    run = await db.run(send, owner, conversation, text)
    making = asyncio.create_task(generate.run(run.id, 1))
    await asyncio.to_thread(provider.wait, held=1)
    await db.run(stop_run, user=owner, run_id=run.pk)
    await asyncio.wait_for(making, 5)
    await asyncio.to_thread(provider.wait, active=0, aborted=1)
    run = await db.run(fresh, run.pk)
    assert run.status == run.message.status == "stopped"
    assert reply_text(50, text).startswith(run.message.text)
    assert bool(run.message.text) == ("hold=5" in text)


async def test_a_flag_that_is_older_than_the_worker_counts(owner, conversation, provider):
    run = await db.run(send, owner, conversation, "[[tokens=50 hold=0 key=old]]")
    await asyncio.to_thread(request_stop, run.pk)
    await asyncio.wait_for(generate.run(run.id, 1), 5)
    assert (await db.run(fresh, run.pk)).status == "stopped"


# --- Faults of the provider -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "code", "delivered"),
    [
        ("[[tokens=20 rate=0 status=400]]", "provider_error", 0),
        ("[[tokens=20 rate=0 cut=5]]", "provider_error", 5),
        ("[[tokens=20 rate=0 garbage=5]]", "provider_error", 5),
        ("[[tokens=20 rate=0 error=5]]", "provider_error", 5),
    ],
)
async def test_a_fault_ends_the_run_with_words_and_keeps_the_text(
    owner, conversation, valkey_client, text, code, delivered
):
    run = await make(owner, conversation, text)
    assert (run.status, run.error_code) == ("failed", code)
    assert run.message.status == "failed"
    assert run.message.text == "".join(reply_pieces(20, text)[:delivered])
    assert run.error_message.endswith(".")
    end = log(valkey_client, run.pk)[-1]
    assert (end["type"], end["code"], end["message"]) == ("run.failed", code, run.error_message)
    # The conversation is free for another try.
    await db.run(start.regenerate, user=owner, message_id=run.message_id, client_id=client_id())


async def test_a_provider_that_is_not_there_ends_the_run(owner, conversation, settings):
    settings.OPENAI_BASE_URL = "http://127.0.0.1:9/v1"
    run = await make(owner, conversation)
    assert (run.status, run.error_code) == ("failed", "provider_error")


async def test_a_run_that_takes_too_long_keeps_its_text(owner, conversation, provider, settings):
    settings.RUN_SECONDS = 1
    text = "[[tokens=50 rate=0 silent=4]]"
    run = await make(owner, conversation, text)
    assert (run.status, run.error_code) == ("failed", "limit_reached")
    assert run.message.text == "".join(reply_pieces(50, text)[:4])


async def test_a_failed_second_try_leaves_the_first_reply_in_place(owner, conversation, provider):
    text = "[[tokens=5 rate=0 key=twice]]"
    first = await make(owner, conversation, text)
    await db.run(Message.objects.filter(children=first.message).update, text="[[status=400]]")
    again = (
        await db.run(
            start.regenerate, user=owner, message_id=first.message_id, client_id=client_id()
        )
    ).run
    await generate.run(again.id, 1)
    assert (await db.run(fresh, again.pk)).status == "failed"
    await db.run(conversation.refresh_from_db)
    assert conversation.leaf_id == first.message_id


async def test_a_second_try_takes_the_place_of_the_first(owner, conversation, provider):
    first = await make(owner, conversation, "[[tokens=5 rate=0]]")
    started = await db.run(
        start.regenerate, user=owner, message_id=first.message_id, client_id=client_id()
    )
    await generate.run(started.run.id, 1)
    await db.run(conversation.refresh_from_db)
    assert conversation.leaf_id == started.run.message_id


# --- Faults of our own side -------------------------------------------------------------------


@pytest.mark.parametrize(("reason", "status"), [(rq_asyncio.STOPPED, "stopped"), ("", "failed")])
async def test_a_cancelled_job_ends_its_run_with_the_text(
    owner, conversation, provider, reason, status
):
    text = "[[tokens=50 rate=0 hold=5 key=cancel]]"
    run = await db.run(send, owner, conversation, text)
    making = asyncio.create_task(generate.run(run.id, 1))
    await asyncio.to_thread(provider.wait, held=1)
    await until(lambda: current_ticker()._writers[run.id].published >= 2)
    making.cancel(reason)
    await asyncio.wait([making], timeout=5)
    run = await db.run(fresh, run.pk)
    assert run.status == status
    assert run.message.text == "".join(reply_pieces(50, text)[:5])
    await asyncio.to_thread(provider.wait, active=0)


async def test_a_flushed_redis_gets_its_log_again_with_the_same_numbers(
    owner, conversation, provider, valkey_client
):
    text = "[[tokens=40 rate=0 hold=20 key=flush]]"
    run = await db.run(send, owner, conversation, text)
    making = asyncio.create_task(generate.run(run.id, 1))
    await asyncio.to_thread(provider.wait, held=1)
    await until(lambda: current_ticker()._writers[run.id].published >= 2)
    before = log(valkey_client, run.pk)
    valkey_client.flushall()
    await asyncio.to_thread(provider.release, "flush")
    await asyncio.wait_for(making, 10)
    told = log(valkey_client, run.pk)
    assert told[: len(before)] == before
    assert [event["seq"] for event in told] == list(range(1, len(told) + 1))
    assert told[-1]["type"] == "run.done"
    assert (await db.run(fresh, run.pk)).message.text == reply_text(40, text)


async def test_a_lease_of_another_attempt_silences_this_one(
    owner, conversation, provider, valkey_client
):
    text = "[[tokens=40 rate=0 hold=5 key=lease]]"
    run = await db.run(send, owner, conversation, text)
    making = asyncio.create_task(generate.run(run.id, 1))
    await asyncio.to_thread(provider.wait, held=1)
    delivered = "".join(reply_pieces(40, text)[:5])
    await until(lambda: run_log.read_reply(run.pk, 1).text == delivered)
    told = log(valkey_client, run.pk)
    valkey_client.set(lease_key(run.pk), 2)
    await asyncio.wait_for(making, 10)
    await asyncio.to_thread(provider.wait, active=0, aborted=1)
    assert log(valkey_client, run.pk) == told
    assert (await db.run(fresh, run.pk)).status == "running"


async def test_a_worker_that_stood_still_changes_nothing_in_the_database(owner, conversation):
    run = await make(owner, conversation)
    late = finish.Outcome(status=Run.Status.FAILED, text="late", code="internal", message="x")
    event = await db.run(
        finish.end, run_id=run.pk, attempt=1, status=Run.Status.RUNNING, seq=99, outcome=late
    )
    assert event is None
    assert (await db.run(fresh, run.pk)).message.text == run.message.text


async def test_a_lease_that_ran_out_is_taken_again_if_the_run_is_still_ours(
    owner, conversation, provider, valkey_client
):
    text = "[[tokens=10 rate=0 hold=5 key=again]]"
    run = await db.run(send, owner, conversation, text)
    making = asyncio.create_task(generate.run(run.id, 1))
    await asyncio.to_thread(provider.wait, held=1)
    valkey_client.delete(lease_key(run.pk))
    await until(lambda: valkey_client.get(lease_key(run.pk)) == b"1")
    await asyncio.to_thread(provider.release, "again")
    await asyncio.wait_for(making, 10)
    assert (await db.run(fresh, run.pk)).status == "done"


async def test_a_fault_while_the_prompt_is_built_ends_the_run_with_words(
    owner, conversation, monkeypatch
):
    def fail(*arguments: Any, **options: Any) -> None:
        raise ValueError("on purpose")

    run = await db.run(send, owner, conversation)
    monkeypatch.setattr(prompt_builder, "build", fail)
    await generate.run(run.id, 1)
    run = await db.run(fresh, run.pk)
    assert (run.status, run.error_code, run.charged) == ("failed", "internal", 0)


async def test_a_lease_lost_while_the_end_is_stored_does_not_swallow_the_last_event(
    owner, conversation, provider, valkey_client, monkeypatch
):
    run = await db.run(send, owner, conversation, "[[tokens=3 rate=0]]")
    stored = finish.end

    def end_and_wait(**fields: Any) -> protocol.RunEnd | None:
        event = stored(**fields)
        valkey_client.flushall()
        time.sleep(2 * RENEW_SECONDS)  # the row says that it is over, and the lease is gone
        return event

    monkeypatch.setattr(finish, "end", end_and_wait)
    await asyncio.wait_for(generate.run(run.id, 1), 20)
    told = log(valkey_client, run.pk)
    assert [event["type"] for event in told][-1] == "run.done"
    assert told[-1]["text"] == reply_text(3, "[[tokens=3 rate=0]]")


async def test_a_fault_while_the_end_is_stored_leaves_the_run_to_the_sweeper(
    owner, conversation, valkey_client, monkeypatch
):
    def fail(**fields):
        raise ValueError("on purpose")

    run = await db.run(send, owner, conversation, "[[tokens=3 rate=0]]")
    with monkeypatch.context() as patch:
        patch.setattr(finish, "end", fail)
        with pytest.raises(ValueError, match="on purpose"):
            await generate.run(run.id, 1)
    assert run.id not in current_ticker()._writers
    await db.run(sweeper.recover, [(run.pk, 1)])
    await generate.run(run.id, 2)
    run = await db.run(fresh, run.pk)
    assert (run.status, run.message.text) == ("done", reply_text(3, "[[tokens=3 rate=0]]"))


async def test_nul_bytes_of_a_model_do_not_lose_the_reply(owner, conversation, valkey_client):
    run = await db.run(send, owner, conversation)
    reply = Reply(prompt_tokens=0)
    writer = RunWriter(run.id, 1, lambda writer, urgent: None, lambda writer, resume: False)
    reply.add(TextDelta("a\x00b"), writer)
    writer.seal()
    assert protocol.header(writer.events[-1]).type == "text.delta"
    assert reply.text == ["ab"]


@pytest.mark.parametrize("worth_pausing", [0.0, 1.0])
async def test_many_runs_of_one_process_are_all_exact(
    owner, assistant, provider, valkey_client, monkeypatch, worth_pausing
):
    monkeypatch.setattr(ticker, "WORTH_PAUSING", worth_pausing)

    def begin_all() -> list[tuple[Run, str]]:
        made = []
        for number in range(50):
            text = f"[[tokens=40 rate=100]] number {number}"
            made.append((start.send(user=owner, text=text, client_id=f"n{number}").run, text))
        return made

    made = await db.run(begin_all)
    await asyncio.gather(*[generate.run(run.id, 1) for run, _ in made])
    for run, text in made:
        run = await db.run(fresh, run.pk)
        assert run.message.text == reply_text(40, text)
        told = log(valkey_client, run.pk)
        assert "".join(e["text"] for e in told if e["type"] == "text.delta") == run.message.text
    assert await db.run(Conversation.objects.count) == 50


async def until(condition, *, seconds=10.0):
    """Wait until something is so; failing that, fail."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)
