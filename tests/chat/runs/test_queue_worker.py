"""The queue with a real worker: who is made when, and what becomes of lost jobs and lost slots."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import redis
from django.utils import timezone

from accounts.models import User
from chat.models import Assistant, Run
from chat.recovery.waiting_runs import REQUEUE_AFTER
from chat.runs import queue, queue_stats
from tests.support.conversations import begin, send
from tests.support.stack import Stack

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("valkey_url"),
    pytest.mark.timeout(180),
]

HELD = "[[tokens=10 rate=0 hold=1 key=held]]"  # waits in the middle until the test lets go on
SHORT = "[[tokens=5 rate=0]]"


def until(condition: Callable[[], bool]) -> None:
    """Wait for something that other processes do."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def send_many(user: User, assistant: Assistant, count: int, text: str) -> list[Run]:
    return [send(user, begin(user, assistant), text) for _ in range(count)]


def count(status: str, user: User) -> int:
    return Run.objects.filter(user=user, status=status).count()


def most_at_once(user: User) -> int:
    """How many runs of the user were being made at once, by what their rows say."""
    times = Run.objects.filter(user=user).values_list("started_at", "ended_at")
    moments = sorted([(start, 1) for start, _ in times] + [(end, -1) for _, end in times])
    running = most = 0
    for _, change in moments:
        running += change
        most = max(most, running)
    return most


def slots(client: redis.Redis, user: User) -> set[bytes]:
    held: Any = client.zrange(f"rq:rl:user:{user.pk}:allowed", 0, -1)
    return set(held)


def test_one_message_does_not_wait_for_thirty_of_somebody_else(
    settings,
    owner,
    stranger,
    assistant,
    provider,
    server_folder,
    valkey_client,
):
    settings.USER_CONCURRENCY = 5
    many = send_many(owner, assistant, 30, HELD)
    with Stack(server_folder, provider_url=provider.url) as stack:
        stack.start("worker")
        until(lambda: count("running", owner) == 5)
        (one,) = send_many(stranger, assistant, 1, SHORT)
        until(lambda: count("done", stranger) == 1)
        assert (count("running", owner), count("queued", owner)) == (5, 25)
        provider.release("held")
        until(lambda: count("done", owner) == 30)
        until(lambda: not slots(valkey_client, owner))
    assert most_at_once(owner) == 5
    one.refresh_from_db()
    assert one.ended_at < Run.objects.filter(pk=many[5].pk).get().started_at
    made = Run.objects.filter(user=owner).order_by("started_at").values_list("pk", flat=True)
    assert set(made[:5]) == {run.pk for run in many[:5]}  # the oldest first


def test_a_flush_while_runs_are_made_holds_nobody_up(
    settings,
    owner,
    assistant,
    provider,
    server_folder,
    valkey_client,
):
    settings.USER_CONCURRENCY = 2
    before = send_many(owner, assistant, 4, HELD)
    limit = {"USER_CONCURRENCY": "2"}
    with Stack(server_folder, provider_url=provider.url, environment=limit) as stack:
        stack.start("worker", "clock")
        until(lambda: count("running", owner) == 2)
        valkey_client.flushall()
        (new,) = send_many(owner, assistant, 1, SHORT)
        until(lambda: Run.objects.filter(pk=new.pk, status="done").exists())
        # The two that waited are found again; the two that are made go on without their slots.
        until(lambda: count("running", owner) == 4)
        provider.release("held")
        until(lambda: count("done", owner) == 5)
        until(lambda: not slots(valkey_client, owner))
        (last,) = send_many(owner, assistant, 1, SHORT)
        until(lambda: Run.objects.filter(pk=last.pk, status="done").exists())
    assert not Run.objects.filter(pk__in=[run.pk for run in before], attempt__gt=1).exists()
    assert len(provider.requests) == 6


def test_a_job_that_was_taken_and_never_claimed_is_made_in_time(
    settings,
    owner,
    assistant,
    provider,
    server_folder,
    valkey_client,
):
    settings.USER_CONCURRENCY = 1
    lost, held = send_many(owner, assistant, 2, SHORT)
    # As a worker does that dies before the claim.
    valkey_client.lmove("rq:queue:chat", "rq:queue:chat:intermediate", "LEFT", "RIGHT")
    limit = {"USER_CONCURRENCY": "1"}
    with Stack(server_folder, provider_url=provider.url, environment=limit) as stack:
        stack.start("worker", "clock")
        until(lambda: count("done", owner) == 2)
    lost.refresh_from_db()
    held.refresh_from_db()
    assert lost.started_at - lost.queued_at > REQUEUE_AFTER
    assert lost.ended_at <= held.started_at


def test_a_user_whose_only_slot_died_with_its_worker_goes_on_in_order(
    settings,
    owner,
    assistant,
    provider,
    server_folder,
    valkey_client,
):
    settings.USER_CONCURRENCY = 1
    lost, held = send_many(owner, assistant, 2, HELD)
    limit = {"USER_CONCURRENCY": "1"}
    with Stack(server_folder, provider_url=provider.url, environment=limit) as stack:
        stack.start("worker", "clock")
        until(lambda: count("running", owner) == 1)
        stack.kill("worker")
        stack.start("worker")
        until(lambda: Run.objects.filter(pk=lost.pk, status="running", attempt=2).exists())
        assert slots(valkey_client, owner) == {queue.job_id(lost.pk, 2).encode()}
        provider.release("held")
        until(lambda: count("done", owner) == 2)
    lost.refresh_from_db()
    held.refresh_from_db()
    assert lost.ended_at <= held.started_at


def test_a_job_that_two_take_is_made_once_and_leaves_no_slot_behind(
    settings,
    owner,
    assistant,
    provider,
    server_folder,
    valkey_client,
):
    settings.USER_CONCURRENCY = 1
    twice, _ = send_many(owner, assistant, 2, HELD)
    valkey_client.rpush("rq:queue:chat", queue.job_id(twice.pk, 1))
    with Stack(server_folder, provider_url=provider.url) as stack:
        stack.start("worker")
        until(lambda: count("running", owner) >= 1 and queue.length().queued == 0)
        provider.release("held")
        until(lambda: count("done", owner) == 2)
        until(lambda: not slots(valkey_client, owner))
    assert len(provider.requests) == 2
    assert set(Run.objects.filter(user=owner).values_list("attempt", flat=True)) == {1}


def test_staff_see_the_workers_and_the_pace(
    owner,
    assistant,
    provider,
    server_folder,
):
    send_many(owner, assistant, 1, SHORT)
    with Stack(server_folder, provider_url=provider.url) as stack:
        stack.start("worker", "clock")
        until(lambda: queue_stats.queue_figures(timezone.now()).service_time is not None)
        send_many(owner, assistant, 1, HELD)
        until(lambda: count("running", owner) == 1)
        found = queue_stats.queue_figures(timezone.now())
        assert (found.running, found.expected_wait) == (1, 0.0)

        def workers() -> list[tuple[int, bool]]:
            found = queue_stats.queue_figures(timezone.now())
            return [(worker.jobs, worker.is_taking) for worker in found.workers]

        until(lambda: workers() == [(1, True)])  # Redis is told a moment after a job began
        provider.release("held")
        until(lambda: count("done", owner) == 2)
