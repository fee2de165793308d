"""A provider's concurrency limit: over all workers, in a fair order, and past killed workers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import UUID

import pytest
from django.utils import timezone

from accounts.models import User
from chat import access, protocol
from chat.errors import ChatError
from chat.generation import generate
from chat.models import LanguageModel, Provider, Run
from chat.recovery.waiting_runs import REQUEUE_AFTER, WaitingRuns
from chat.runs import queue
from chat.runs.describe import queue_status
from chat.runs.stop import stop_run
from chat.streaming import places
from chatproject.lib import db
from tests.support.fake_llm import FakeLLM
from tests.support.runs import fresh, send_many
from tests.support.stack import Stack

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("valkey_url")]

HELD = "[[tokens=10 rate=0 hold=1 key=held]]"  # waits until the test releases it


@pytest.fixture
def limited(assistant) -> Provider:
    """The environment's provider, with a limit of two replies at the same time."""
    provider = Provider.objects.create(name="Environment", concurrency=2)
    LanguageModel.objects.update(provider=provider)
    return provider


def claimed(run: Run, attempt: int = 1) -> bool:
    return generate.claim(run.pk, attempt) is not None


def end(run: Run, provider: Provider) -> None:
    """End a running run, and serve the next."""
    Run.objects.filter(pk=run.pk).update(status="done", ended_at=timezone.now())
    queue.serve_waiting(provider.pk, provider.concurrency, ended=run.pk)


def queued_jobs() -> list[UUID]:
    return [UUID(job.removeprefix("run-")[:36]) for job in queue.rq_queue().get_job_ids()]


def test_run_above_the_limit_stays_queued(owner, assistant, limited, valkey_client):
    runs = send_many(owner, assistant, 4)
    valkey_client.delete(queue.rq_queue().key)  # a worker has taken all jobs
    assert [claimed(run) for run in runs] == [True, True, False, False]
    third, last = fresh(runs[2].pk), fresh(runs[3].pk)
    assert (third.status, third.attempt) == ("queued", 0)
    event = queue_status(access.run(owner, last.pk))
    assert isinstance(event, protocol.RunQueued)
    assert (event.position, event.busy) == (2, True)
    assert queue.length().waiting == 2
    assert queue.positions([third, last])[third.pk] == queue.Position(
        1, None, is_provider_busy=True
    )

    end(runs[0], limited)
    assert queued_jobs() == [third.pk]
    assert claimed(third)
    assert not claimed(last)


def test_no_limit_takes_no_place(owner, assistant, valkey_client):
    (run,) = send_many(owner, assistant, 1)
    assert claimed(run)
    assert not [*valkey_client.scan_iter("places:*")]


def test_many_runs_of_one_user_delay_no_other_user(owner, stranger, assistant, limited):
    many = send_many(owner, assistant, 6)
    (single,) = send_many(stranger, assistant, 1)
    assert [claimed(run) for run in (*many, single)] == [True, True, *[False] * 5]
    end(many[0], limited)
    end(many[1], limited)
    served = queued_jobs()[:2]
    assert single.pk in served
    assert len({*served} & {run.pk for run in many}) == 1


def test_run_that_ended_while_waiting_leaves_its_place(owner, assistant, limited, valkey_client):
    runs = send_many(owner, assistant, 4)
    for run in runs:
        claimed(run)
    stop_run(user=owner, run_id=runs[2].pk)
    # And one that ended in a way that left it in the queue.
    queue.take_place(runs[2], limited)
    end(runs[0], limited)
    assert claimed(runs[3])
    end(runs[1], limited)
    assert places.providers_with_waiting_runs() == set()
    assert valkey_client.zcard(places.places_key(limited.pk)) == 1


def test_place_of_killed_worker_expires(owner, assistant, limited, monkeypatch):
    monkeypatch.setattr(places, "LEASE_MILLISECONDS", 300)
    runs = send_many(owner, assistant, 3)
    assert [claimed(run) for run in runs] == [True, True, False]
    time.sleep(0.4)
    WaitingRuns().sweep(timezone.now())
    assert queued_jobs()[0] == runs[2].pk
    assert claimed(runs[2])


def test_next_attempt_keeps_the_place(owner, assistant, limited):
    runs = send_many(owner, assistant, 3)
    assert [claimed(run) for run in runs] == [True, True, False]
    Run.objects.filter(pk=runs[0].pk).update(status="queued")
    assert claimed(runs[0], 2)


@pytest.mark.parametrize("change", ["limit", "provider"])
def test_lifted_limit_serves_waiting_runs(owner, assistant, limited, valkey_client, change):
    runs = send_many(owner, assistant, 5)
    assert sum(claimed(run) for run in runs) == 2
    valkey_client.delete(queue.rq_queue().key)
    if change == "limit":
        Provider.objects.update(concurrency=None)
    else:  # its models were given to another one
        other = Provider.objects.create(name="Other", base_url="https://api.example.com/v1")
        LanguageModel.objects.update(provider=other)
        limited.delete()
    WaitingRuns().sweep(timezone.now())
    assert queued_jobs() == [run.pk for run in runs[2:]]
    assert all(claimed(run) for run in runs[2:])


def test_lost_redis_keeps_waiting_runs(owner, assistant, limited, valkey_client):
    runs = send_many(owner, assistant, 3)
    assert [claimed(run) for run in runs] == [True, True, False]
    valkey_client.flushall()
    waiting, now = WaitingRuns(), timezone.now() + REQUEUE_AFTER
    for turn in range(3):
        waiting.sweep(now + turn * REQUEUE_AFTER)
    assert queued_jobs() == [runs[2].pk]


def test_waiting_runs_count_for_admission(owner, stranger, assistant, limited, settings):
    runs = send_many(owner, assistant, 5)
    for run in runs:
        claimed(run)
        queue.withdraw(owner.pk, run.pk, 5)
    settings.QUEUE_LIMIT = queue.count_message(stranger.pk, None).queued
    assert settings.QUEUE_LIMIT >= 3
    with pytest.raises(ChatError) as refused:
        send_many(stranger, assistant, 1)
    assert refused.value.code == "busy"


async def test_worker_renews_and_frees_its_place(
    owner, assistant, limited, provider, worker_loop, valkey_client
):
    (run,) = await db.run(send_many, owner, assistant, 1, HELD)
    generating = asyncio.create_task(generate.run(run.pk, 1))
    await asyncio.to_thread(provider.wait, held=1)
    key = places.places_key(limited.pk)
    valkey_client.delete(key)  # as a Redis that lost its data
    async with asyncio.timeout(10):
        while not valkey_client.zscore(key, str(run.pk)):
            await asyncio.sleep(0.05)
    await asyncio.to_thread(provider.release, "held")
    await asyncio.wait_for(generating, 10)
    assert valkey_client.zcard(key) == 0


# --- With real workers ------------------------------------------------------------------------


@pytest.fixture
def stack(provider: FakeLLM, server_folder: Path) -> Iterator[Stack]:
    with Stack(server_folder, provider_url=provider.url) as stack:
        yield stack


def until(condition: Callable[[], bool]) -> None:
    """Wait for an effect of other processes."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def count(status: str, user: User) -> int:
    return Run.objects.filter(user=user, status=status).count()


@pytest.mark.timeout(240)
def test_two_workers_keep_the_limit_past_a_kill(stack, owner, assistant, limited, provider):
    stack.start("worker", "worker-2", "clock")
    runs = send_many(owner, assistant, 4, HELD)
    until(lambda: count("running", owner) == 2)
    provider.wait(held=2)
    until(lambda: len(places.waiting_at([run.pk for run in runs])) == 2)
    assert provider.counts["active"] == 2
    workers = {*Run.objects.filter(status="running").values_list("worker", flat=True)}
    victim = (
        "worker" if any(one.endswith(f":{stack.pid('worker')}") for one in workers) else "worker-2"
    )
    stack.kill(victim)
    # Another worker takes the runs of the dead one over, within the limit.
    until(lambda: provider.counts["active"] == 2 and count("running", owner) == 2)
    provider.release("held")
    until(lambda: count("done", owner) == 4)
    assert provider.peak == 2
