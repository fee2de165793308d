"""A worker generates replies, with the fake provider and the real Postgres and Valkey."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from typing import Any

import psycopg
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
from chatproject.lib.env import Limit
from tests.support.conversations import client_id, send
from tests.support.fake_llm import reasoning_text, reply_pieces, reply_text
from tests.support.runs import (
    fresh,
    generate_until_hold,
    held_text,
    logged,
    mark_done,
    send_running,
    until,
)

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("worker_loop"),
]


async def make(owner, conversation, text="[[tokens=30 rate=0]]") -> Run:
    """Send a message and generate its reply in this process; returns the run as it ended."""
    run = await db.run(send, owner, conversation, text)
    await generate.run(run.id, 1)
    return await db.run(fresh, run.pk)


async def test_reply_is_stored_whole(owner, conversation):
    run = await make(owner, conversation)
    assert run.status == "done"
    assert run.message.text == reply_text(30, "[[tokens=30 rate=0]]")
    assert run.message.html
    assert run.message.status == "done"
    assert run.completion_tokens == 30
    assert run.finish_reason == "stop"
    assert not run.usage_estimated
    assert run.started_at <= run.first_token_at <= run.ended_at


async def test_log_has_numbered_events_up_to_end(owner, conversation, valkey_client):
    run = await make(owner, conversation, "[[tokens=40 rate=200]]")
    events = logged(valkey_client, run.pk)
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert events[0]["type"] == "run.started"
    assert events[-1]["type"] == "run.done"
    assert run.seq == events[-1]["seq"]
    deltas = [event["text"] for event in events if event["type"] == "text.delta"]
    assert len(deltas) > 1
    assert "".join(deltas) == run.message.text == events[-1]["text"]


async def test_every_tenth_event_carries_its_time(owner, conversation, valkey_client):
    began = time.time() * 1000
    run = await make(owner, conversation, "[[tokens=60 rate=100]]")
    timed = {e["seq"]: e["t"] for e in logged(valkey_client, run.pk) if "t" in e}
    assert timed
    assert all(seq % 10 == 0 for seq in timed)
    assert all(began - 1 <= t <= time.time() * 1000 for t in timed.values())


async def test_redis_keys_of_ended_run_expire(owner, conversation, valkey_client):
    run = await make(owner, conversation)
    assert 0 < valkey_client.ttl(run_log.log_key(run.pk)) <= run_log.ENDED_LOG_SECONDS
    assert not valkey_client.exists(lease_key(run.pk), stop_key(run.pk))


async def test_reasoning_is_stored_apart_from_text(owner, conversation, valkey_client):
    text = "[[tokens=10 rate=0 reasoning=5]]"
    run = await make(owner, conversation, text)
    part = await db.run(MessagePart.objects.get, message=run.message)
    assert part.data == {"text": reasoning_text(5, text), "seconds": 1}
    assert run.message.text == reply_text(10, text)
    kinds = [event["type"] for event in logged(valkey_client, run.pk)]
    assert kinds.index("reasoning.delta") < kinds.index("text.delta")


async def test_provider_receives_each_message_once(owner, conversation, provider):
    await make(owner, conversation, "First [[tokens=3 rate=0]]")
    await db.run(conversation.refresh_from_db)
    await make(owner, conversation, "Second [[tokens=3 rate=0]]")
    messages = provider.requests[-1]["messages"]
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user"]
    assert messages[0]["content"] == "Be brief."
    assert messages[1]["content"].startswith("First")
    assert messages[3]["content"].startswith("Second")


async def test_missing_usage_is_estimated(owner, conversation):
    run = await make(owner, conversation, "[[tokens=10 rate=0 nousage=1]]")
    assert run.usage_estimated
    assert run.completion_tokens > 0
    assert run.prompt_tokens > 0


# --- Claim ------------------------------------------------------------------------------------


async def test_two_jobs_of_attempt_generate_once(owner, conversation, provider):
    run = await db.run(send, owner, conversation, "[[tokens=10 rate=0]]")
    await asyncio.gather(generate.run(run.id, 1), generate.run(run.id, 1))
    assert len(provider.requests) == 1
    assert (await db.run(fresh, run.pk)).attempt == 1


async def test_run_stopped_in_queue_is_not_generated(owner, conversation, provider):
    run = await db.run(send, owner, conversation)
    await db.run(stop_run, user=owner, run_id=run.pk)
    await generate.run(run.id, 1)
    assert provider.requests == []
    assert (await db.run(fresh, run.pk)).status == "stopped"


# --- Stop -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["[[tokens=50 hold=0 key=stop]]", "[[tokens=50 rate=0 hold=5 key=stop]]"]
)
async def test_run_stops_before_and_after_first_token(owner, conversation, provider, text):
    run = await db.run(send, owner, conversation, text)
    generating = await generate_until_hold(run, provider)
    await db.run(stop_run, user=owner, run_id=run.pk)
    await asyncio.wait_for(generating, 5)
    await asyncio.to_thread(provider.wait, active=0, aborted=1)
    run = await db.run(fresh, run.pk)
    assert run.status == run.message.status == "stopped"
    assert run.message.text == held_text(text)


async def test_stop_flag_set_before_claim_counts(owner, conversation):
    run = await db.run(send, owner, conversation, "[[tokens=50 hold=0 key=old]]")
    await asyncio.to_thread(request_stop, run.pk)
    await asyncio.wait_for(generate.run(run.id, 1), 5)
    assert (await db.run(fresh, run.pk)).status == "stopped"


# --- Faults of the provider -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "delivered", "cause"),
    [
        ("status=400", 0, "refused"),
        ("status=401", 0, "key"),
        ("status=429 retry_after=99", 0, "busy"),
        ("cut=5", 5, "cut"),
        ("garbage=5", 5, "malformed"),
        ("error=5", 5, "reported"),
    ],
)
async def test_provider_fault_keeps_delivered_text(
    owner, conversation, valkey_client, fault, delivered, cause
):
    text = f"[[tokens=20 rate=0 {fault}]]"
    run = await make(owner, conversation, text)
    assert (run.status, run.error_code, run.error_cause) == ("failed", "provider_error", cause)
    assert run.message.status == "failed"
    assert run.message.text == "".join(reply_pieces(20, text)[:delivered])
    assert run.error_message.endswith(".")
    end = logged(valkey_client, run.pk)[-1]
    assert (end["type"], end["code"]) == ("run.failed", "provider_error")
    assert end["message"] == run.error_message
    # The conversation is free for another try.
    await db.run(start.regenerate, user=owner, message_id=run.message_id, client_id=client_id())


async def test_unreachable_provider_fails_run(owner, conversation, settings):
    settings.OPENAI_BASE_URL = "http://127.0.0.1:9/v1"
    run = await make(owner, conversation)
    assert (run.status, run.error_code) == ("failed", "provider_error")


async def test_silence_until_time_limit_is_the_providers(owner, conversation, settings):
    settings.RUN_SECONDS = 1
    run = await make(owner, conversation, "[[headers=60]]")
    assert (run.status, run.error_code, run.error_cause) == (
        "failed",
        "provider_timeout",
        "timeout",
    )
    assert run.charged == 0


async def test_run_over_time_limit_keeps_text(owner, conversation, settings):
    settings.RUN_SECONDS = 1
    text = "[[tokens=50 rate=0 silent=4]]"
    run = await make(owner, conversation, text)
    assert (run.status, run.error_code) == ("failed", "limit_reached")
    assert run.message.text == "".join(reply_pieces(50, text)[:4])


@pytest.mark.parametrize(
    ("question", "status"), [("[[tokens=5 rate=0]]", "done"), ("[[status=400]]", "failed")]
)
async def test_regenerated_reply_becomes_leaf_unless_failed(owner, conversation, question, status):
    first = await make(owner, conversation)
    await db.run(Message.objects.filter(children=first.message).update, text=question)
    started = await db.run(
        start.regenerate, user=owner, message_id=first.message_id, client_id=client_id()
    )
    await generate.run(started.run.id, 1)
    second = await db.run(fresh, started.run.pk)
    assert second.status == status
    await db.run(conversation.refresh_from_db)
    assert conversation.leaf_id == (second if status == "done" else first).message_id


# --- Faults of this side ----------------------------------------------------------------------


@pytest.mark.parametrize(("reason", "status"), [(rq_asyncio.STOPPED, "stopped"), ("", "failed")])
async def test_cancelled_job_ends_run_with_its_text(owner, conversation, provider, reason, status):
    text = "[[tokens=50 rate=0 hold=5 key=cancel]]"
    run = await db.run(send, owner, conversation, text)
    generating = await generate_until_hold(run, provider)
    generating.cancel(reason)
    await asyncio.wait([generating], timeout=5)
    run = await db.run(fresh, run.pk)
    assert run.status == status
    assert run.message.text == held_text(text)
    await asyncio.to_thread(provider.wait, active=0)


async def test_lost_log_is_written_again_identically(owner, conversation, provider, valkey_client):
    text = "[[tokens=40 rate=0 hold=20 key=flush]]"
    run = await db.run(send, owner, conversation, text)
    generating = await generate_until_hold(run, provider)
    before = logged(valkey_client, run.pk)
    valkey_client.flushall()
    await asyncio.to_thread(provider.release, "flush")
    await asyncio.wait_for(generating, 10)
    events = logged(valkey_client, run.pk)
    assert events[: len(before)] == before
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert events[-1]["type"] == "run.done"
    assert (await db.run(fresh, run.pk)).message.text == reply_text(40, text)


async def test_lease_of_another_attempt_stops_writing(owner, conversation, provider, valkey_client):
    run = await db.run(send, owner, conversation, "[[tokens=40 rate=0 hold=5 key=lease]]")
    generating = await generate_until_hold(run, provider)
    events = logged(valkey_client, run.pk)
    valkey_client.set(lease_key(run.pk), 2)
    await asyncio.wait_for(generating, 10)
    await asyncio.to_thread(provider.wait, active=0, aborted=1)
    assert logged(valkey_client, run.pk) == events
    assert (await db.run(fresh, run.pk)).status == "running"


async def test_late_end_changes_no_row(owner, conversation):
    """A worker that was suspended until its run had ended changes nothing in the database."""
    run = await make(owner, conversation)
    late = finish.Outcome(status=Run.Status.FAILED, text="late", code="internal", message="x")
    event = await db.run(
        finish.end, run_id=run.pk, attempt=1, status=Run.Status.RUNNING, seq=99, outcome=late
    )
    assert event is None
    assert (await db.run(fresh, run.pk)).message.text == run.message.text


async def test_expired_lease_of_running_run_is_retaken(
    owner, conversation, provider, valkey_client
):
    run = await db.run(send, owner, conversation, "[[tokens=10 rate=0 hold=5 key=again]]")
    generating = await generate_until_hold(run, provider)
    valkey_client.delete(lease_key(run.pk))
    await until(lambda: valkey_client.get(lease_key(run.pk)) == b"1")
    await asyncio.to_thread(provider.release, "again")
    await asyncio.wait_for(generating, 10)
    assert (await db.run(fresh, run.pk)).status == "done"


def fail(*arguments: Any, **options: Any) -> None:
    raise ValueError("on purpose")


async def test_error_in_prompt_fails_run_free(owner, conversation, monkeypatch):
    run = await db.run(send, owner, conversation)
    monkeypatch.setattr(prompt_builder, "build", fail)
    await generate.run(run.id, 1)
    run = await db.run(fresh, run.pk)
    assert (run.status, run.error_code, run.charged) == ("failed", "internal", 0)


async def test_last_event_survives_lease_lost_while_storing(
    owner, conversation, valkey_client, monkeypatch
):
    run = await db.run(send, owner, conversation, "[[tokens=3 rate=0]]")
    stored = finish.end

    def end_and_wait(**fields: Any) -> protocol.RunEnd | None:
        event = stored(**fields)
        valkey_client.flushall()
        time.sleep(2 * RENEW_SECONDS)  # the row has the end, and the lease is lost
        return event

    monkeypatch.setattr(finish, "end", end_and_wait)
    await asyncio.wait_for(generate.run(run.id, 1), 20)
    end = logged(valkey_client, run.pk)[-1]
    assert end["type"] == "run.done"
    assert end["text"] == reply_text(3, "[[tokens=3 rate=0]]")


async def test_sweeper_recovers_run_whose_storing_failed(owner, conversation, monkeypatch):
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


async def test_nul_bytes_are_dropped_from_reply(owner, conversation):
    run = await db.run(send, owner, conversation)
    reply = Reply(prompt_tokens=0)
    writer = RunWriter(run.id, 1, lambda writer, urgent: None, lambda writer, resume: False)
    reply.add(TextDelta("a\x00b"), writer)
    writer.seal()
    assert protocol.header(writer.events[-1]).type == "text.delta"
    assert reply.text == ["ab"]


@pytest.mark.parametrize("worth_pausing", [0.0, 1.0])
async def test_concurrent_runs_of_process_are_exact(
    owner, assistant, valkey_client, monkeypatch, settings, worth_pausing
):
    settings.RATE_LIMITS = settings.RATE_LIMITS | {"messages": Limit(())}
    monkeypatch.setattr(ticker, "WORTH_PAUSING", worth_pausing)
    texts = [f"[[tokens=40 rate=100]] number {number}" for number in range(50)]

    def send_all() -> list[Run]:
        return [
            start.send(user=owner, text=text, client_id=f"n{number}").run
            for number, text in enumerate(texts)
        ]

    runs = await db.run(send_all)
    await asyncio.gather(*[generate.run(run.id, 1) for run in runs])
    for run, text in zip(runs, texts, strict=True):
        reply = (await db.run(fresh, run.pk)).message.text
        assert reply == reply_text(40, text)
        events = logged(valkey_client, run.pk)
        assert "".join(e["text"] for e in events if e["type"] == "text.delta") == reply
    assert await db.run(Conversation.objects.count) == 50


async def test_end_whose_commit_was_not_answered_is_published(
    owner, conversation, provider, valkey_client, monkeypatch
):
    text = "[[tokens=40 rate=0 hold=20 key=commit]]"
    run = await db.run(send, owner, conversation, text)
    generating = await generate_until_hold(run, provider)
    lost: list[int] = []
    commit = psycopg.Connection.commit

    def commit_without_answer(connection: psycopg.Connection[Any]) -> None:
        commit(connection)
        if not lost:
            lost.append(1)
            connection.close()
            raise psycopg.OperationalError("the connection is lost")

    monkeypatch.setattr(psycopg.Connection, "commit", commit_without_answer)
    await asyncio.to_thread(provider.release, "commit")
    await asyncio.wait_for(generating, 10)
    assert lost == [1]
    assert (await db.run(fresh, run.pk)).status == "done"
    assert [event["type"] for event in logged(valkey_client, run.pk)][-1] == "run.done"


async def test_end_is_published_after_silence_of_valkey(owner, conversation, settings, own_valkey):
    """A web process that kept its connection has no other occasion to read the run's end."""
    settings.REDIS_URL = own_valkey.url
    run = await db.run(send_running, owner, conversation)
    own_ticker = ticker.Ticker()
    writer = own_ticker.open(run.pk, 1, age=0)
    await own_ticker.flush(writer)
    await db.run(mark_done, run)
    os.kill(own_valkey.pid, signal.SIGSTOP)
    end = await db.run(finish.read, run.pk)
    assert end is not None
    writer.append(end)
    closing = asyncio.create_task(own_ticker.close(writer))
    await asyncio.sleep(6)
    os.kill(own_valkey.pid, signal.SIGCONT)
    await asyncio.wait_for(closing, 10)
    await own_ticker.shut_down()
    with redis.Redis.from_url(own_valkey.url) as client:
        assert [event["type"] for event in logged(client, run.pk)] == ["run.started", "run.done"]
