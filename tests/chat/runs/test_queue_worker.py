"""The queue with a real worker: order and limits, lost jobs and lost slots."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import redis
from django.utils import timezone

from accounts.models import User
from chat.models import Run
from chat.recovery.waiting_runs import REQUEUE_AFTER
from chat.runs import queue, queue_stats
from tests.support.fake_llm import FakeLLM
from tests.support.runs import send_many
from tests.support.stack import Stack

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("valkey_url"),
    pytest.mark.timeout(180),
]

HELD = "[[tokens=10 rate=0 hold=1 key=held]]"  # waits in the middle until the test releases it
SHORT = "[[tokens=5 rate=0]]"


@pytest.fixture
def concurrency() -> int:
    """The limit of active runs per user."""
    return 1


@pytest.fixture
def stack(concurrency: int, settings, provider: FakeLLM, server_folder: Path) -> Iterator[Stack]:
    """A stack with that limit, also set in this process; the test starts its processes."""
    settings.USER_CONCURRENCY = concurrency
    limit = {"USER_CONCURRENCY": str(concurrency)}
    with Stack(server_folder, provider_url=provider.url, environment=limit) as stack:
        yield stack


def until(condition: Callable[[], bool]) -> None:
    """Wait for an effect of other processes."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def count(status: str, user: User) -> int:
    return Run.objects.filter(user=user, status=status).count()


def has_status(run: Run, status: str) -> bool:
    run.refresh_from_db()
    return bool(run.status == status)


def max_concurrency(user: User) -> int:
    """Return the largest number of the user's runs that were running at once, by their rows."""
    times = Run.objects.filter(user=user).values_list("started_at", "ended_at")
    changes = sorted([(start, 1) for start, _ in times] + [(end, -1) for _, end in times])
    return max(accumulate(change for _, change in changes))


def slots(client: redis.Redis, user: User) -> set[bytes]:
    taken: Any = client.zrange(f"rq:rl:user:{user.pk}:allowed", 0, -1)
    return set(taken)


@pytest.mark.parametrize("concurrency", [5])
def test_one_message_passes_thirty_of_another_user(
    stack, owner, stranger, assistant, provider, valkey_client
):
    many = send_many(owner, assistant, 30, HELD)
    stack.start("worker")
    until(lambda: count("running", owner) == 5)
    (one,) = send_many(stranger, assistant, 1, SHORT)
    until(lambda: has_status(one, "done"))
    assert (count("running", owner), count("queued", owner)) == (5, 25)
    provider.release("held")
    until(lambda: count("done", owner) == 30)
    until(lambda: not slots(valkey_client, owner))
    assert max_concurrency(owner) == 5
    assert one.ended_at < Run.objects.get(pk=many[5].pk).started_at
    made = Run.objects.filter(user=owner).order_by("started_at").values_list("pk", flat=True)
    assert set(made[:5]) == {run.pk for run in many[:5]}  # the oldest first


@pytest.mark.parametrize("concurrency", [2])
def test_flush_during_runs_blocks_no_run(stack, owner, assistant, provider, valkey_client):
    before = send_many(owner, assistant, 4, HELD)
    stack.start("worker", "clock")
    until(lambda: count("running", owner) == 2)
    valkey_client.flushall()
    (new,) = send_many(owner, assistant, 1, SHORT)
    until(lambda: has_status(new, "done"))
    # The two queued ones are requeued; the two running ones continue without their slots.
    until(lambda: count("running", owner) == 4)
    provider.release("held")
    until(lambda: count("done", owner) == 5)
    until(lambda: not slots(valkey_client, owner))
    (last,) = send_many(owner, assistant, 1, SHORT)
    until(lambda: has_status(last, "done"))
    assert not Run.objects.filter(pk__in=[run.pk for run in before], attempt__gt=1).exists()
    assert len(provider.requests) == 6


def test_unclaimed_job_is_generated_in_time(stack, owner, assistant, valkey_client):
    lost, throttled = send_many(owner, assistant, 2, SHORT)
    # Like a worker that dies before the claim.
    valkey_client.lmove("rq:queue:chat", "rq:queue:chat:intermediate", "LEFT", "RIGHT")
    stack.start("worker", "clock")
    until(lambda: has_status(lost, "done") and has_status(throttled, "done"))
    assert lost.started_at - lost.queued_at > REQUEUE_AFTER
    assert lost.ended_at <= throttled.started_at


def test_slot_of_dead_worker_keeps_order(stack, owner, assistant, provider, valkey_client):
    lost, throttled = send_many(owner, assistant, 2, HELD)
    stack.start("worker", "clock")
    until(lambda: has_status(lost, "running"))
    stack.kill("worker")
    stack.start("worker")
    until(lambda: has_status(lost, "running") and lost.attempt == 2)
    assert slots(valkey_client, owner) == {queue.job_id(lost.pk, 2).encode()}
    provider.release("held")
    until(lambda: has_status(lost, "done") and has_status(throttled, "done"))
    assert lost.ended_at <= throttled.started_at


def test_job_taken_twice_runs_once(stack, owner, assistant, provider, valkey_client):
    twice, _ = send_many(owner, assistant, 2, HELD)
    valkey_client.rpush("rq:queue:chat", queue.job_id(twice.pk, 1))
    stack.start("worker")
    until(lambda: count("running", owner) >= 1 and queue.length().queued == 0)
    provider.release("held")
    until(lambda: count("done", owner) == 2)
    until(lambda: not slots(valkey_client, owner))
    assert len(provider.requests) == 2
    assert set(Run.objects.filter(user=owner).values_list("attempt", flat=True)) == {1}


@pytest.mark.parametrize("concurrency", [5])
def test_live_queue_shows_workers_and_throughput(stack, owner, assistant, provider):
    send_many(owner, assistant, 1, SHORT)
    stack.start("worker", "clock")
    until(lambda: queue_stats.queue_figures(timezone.now()).service_time is not None)
    send_many(owner, assistant, 1, HELD)
    until(lambda: count("running", owner) == 1)
    found = queue_stats.queue_figures(timezone.now())
    assert (found.running, found.expected_wait) == (1, 0.0)

    def workers() -> list[tuple[int, bool]]:
        found = queue_stats.queue_figures(timezone.now())
        return [(worker.jobs, worker.is_taking) for worker in found.workers]

    until(lambda: workers() == [(1, True)])  # Redis has it a moment after a job began
    provider.release("held")
    until(lambda: count("done", owner) == 2)
