"""The queue: order, throttling, refusals, and the positions sent to waiting clients."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta

import msgspec
import pytest
import redis
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from billing.models import Account, Hold, Plan
from chat import access, errors, protocol
from chat.errors import ChatError
from chat.models import Conversation, Message, Run
from chat.recovery import waiting_runs
from chat.recovery.waiting_runs import REQUEUE_AFTER, WaitingRuns
from chat.runs import describe, queue, queue_stats, start, wait_estimate
from chat.runs.stop import stop_run
from chat.runs.wait_estimate import Throughput
from chat.streaming import groups
from chatproject.lib.pubsub.layer import get_layer
from chatproject.lib.redis.clients import sync_client
from chatproject.local.servers import free_port
from tests.support.conversations import begin, send
from tests.support.runs import mark_running, send_many

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("valkey_url")]

QUEUE = "rq:queue:chat"
INTERMEDIATE = "rq:queue:chat:intermediate"


@pytest.fixture
def two_each(settings):
    """At most two runs of each user are queued or running."""
    settings.USER_CONCURRENCY = 2


@pytest.fixture
def without_redis(settings) -> Iterator[None]:
    """A Redis that is unreachable."""
    settings.REDIS_URL = f"redis://127.0.0.1:{free_port()}/0"
    forget_clients()
    yield
    forget_clients()


def forget_clients() -> None:
    sync_client.cache_clear()
    queue.rq_queue.cache_clear()


def positions(*sent: Run) -> list[object]:
    """Return the runs' positions: a number in the queue, "throttled 1", or None without one."""
    found = [queue.position(run) for run in sent]
    return [
        each and (f"throttled {each.number}" if each.is_throttled else each.number)
        for each in found
    ]


def take(client: redis.Redis, run: Run) -> None:
    """Take a run's job like a worker that dies before the claim."""
    name = queue.job_id(run.pk, run.attempt + 1)
    assert client.lmove(QUEUE, INTERMEDIATE, "LEFT", "RIGHT") == name.encode()


def sweep(sweeper: WaitingRuns, *seconds: float) -> None:
    """Sweep at these seconds from now."""
    now = timezone.now()
    for moment in seconds:
        sweeper.sweep(now + timedelta(seconds=moment))


def set_throughput(client: redis.Redis, throughput: Throughput) -> None:
    client.set(wait_estimate.KEY, json.dumps(msgspec.structs.asdict(throughput)))


@pytest.fixture
def lost(owner, conversation) -> Run:
    """A queued run that lost its first worker."""
    run = send(owner, conversation)
    Run.objects.filter(pk=run.pk).update(attempt=1)
    run.refresh_from_db()
    queue.enqueue(run)
    return run


# --- The queue --------------------------------------------------------------------------------


def test_runs_above_users_limit_are_throttled(two_each, owner, stranger, assistant):
    many = send_many(owner, assistant, 5)
    (other,) = send_many(stranger, assistant, 1)
    assert positions(*many) == [1, 2, "throttled 1", "throttled 2", "throttled 3"]
    assert positions(other) == [3]


def test_plan_limits_the_runs_at_a_time(two_each, owner, assistant, valkey_client):
    Plan.objects.create(slug="all", name="All", is_default=True, parallel_runs=3)
    first, *others = send_many(owner, assistant, 5)
    assert positions(*others) == [2, 3, "throttled 1", "throttled 2"]
    set_throughput(valkey_client, Throughput(service=6.0, running=1, capacity=1))
    assert queue.position(others[2]).eta == 6.0 / 3 + 4 * 6.0
    take(valkey_client, first)
    queue.release(owner.pk, first.pk, 1)
    assert positions(*others) == [1, 2, 3, "throttled 1"]


def test_positions_of_many_equal_single_ones(two_each, owner, stranger, assistant):
    sent = [*send_many(owner, assistant, 4), *send_many(stranger, assistant, 3)]
    assert queue.positions(sent) == {run.pk: queue.position(run) for run in sent}


def test_job_enqueued_again_is_queued_once(two_each, owner, assistant):
    first, second, third = send_many(owner, assistant, 3)
    for run in (first, second, third, first):
        queue.enqueue(run)
    assert queue.length().queued == 2
    assert sorted(map(str, positions(first, second, third))) == ["1", "2", "throttled 1"]


def test_freed_slot_goes_to_users_next_run(two_each, owner, stranger, assistant, valkey_client):
    first, second, third = send_many(owner, assistant, 3)
    take(valkey_client, first)
    queue.release(owner.pk, first.pk, 1)
    assert positions(second, third) == [1, 2]
    queue.release(stranger.pk, second.pk, 1)  # of another user: it frees nothing
    assert positions(second, third) == [1, 2]


def test_next_attempt_goes_first_in_old_slot(settings, owner, stranger, assistant, valkey_client):
    settings.USER_CONCURRENCY = 1
    lost, throttled = send_many(owner, assistant, 2)
    (other,) = send_many(stranger, assistant, 1)
    take(valkey_client, lost)
    Run.objects.filter(pk=lost.pk).update(attempt=1)
    lost.refresh_from_db()
    queue.enqueue(lost)
    assert positions(lost, other, throttled) == [1, 2, "throttled 1"]


def test_stopped_run_leaves_queue(two_each, owner, assistant, valkey_client):
    first, second, third, fourth = send_many(owner, assistant, 4)
    stop_run(user=owner, run_id=third.pk)
    assert positions(first, second, third, fourth) == [1, 2, None, "throttled 1"]
    stop_run(user=owner, run_id=first.pk)
    assert positions(first, second, third, fourth) == [None, 1, None, 2]
    assert not valkey_client.exists(
        *(f"rq:job:{queue.job_id(run.pk, 1)}" for run in (first, third))
    )


# --- Refused before anything is stored --------------------------------------------------------


def state() -> tuple[object, ...]:
    """Return the rows that a message would change, counted."""
    counts = (Conversation.objects.count(), Message.objects.count(), Run.objects.count())
    return (*counts, Hold.objects.count(), *Account.objects.values_list("balance", "held", "seq"))


def refused(user, conversation) -> ChatError:
    before = state()
    with pytest.raises(ChatError) as error:
        send(user, conversation)
    assert state() == before
    return error.value


def test_user_with_too_many_runs_is_refused(settings, owner, stranger, assistant, valkey_client):
    settings.USER_CONCURRENCY, settings.USER_QUEUE_LIMIT = 2, 2
    sent = send_many(owner, assistant, 4)
    another = begin(owner, assistant)
    error = refused(owner, another)
    assert (error.code, error.retry_after) == ("rate_limited", wait_estimate.RETRY_AFTER)
    set_throughput(valkey_client, Throughput(service=6.0, running=2, capacity=500))
    assert refused(owner, another).retry_after == 3.0
    # A repetition is answered, not refused; other users are not affected.
    again = start.send(
        user=owner,
        conversation_id=sent[3].conversation_id,
        text="Hello",
        client_id=sent[3].client_id,
    )
    assert (again.is_new, again.run, again.event.position) == (False, sent[3], 2)
    send(stranger, begin(stranger, assistant))
    queue.release(owner.pk, sent[0].pk, 1)
    send(owner, another)


def test_limit_zero_refuses_instead_of_throttling(settings, owner, assistant):
    settings.USER_CONCURRENCY, settings.USER_QUEUE_LIMIT = 1, 0
    send_many(owner, assistant, 1)
    assert refused(owner, begin(owner, assistant)).code == "rate_limited"


def test_full_queue_refuses_all_users(settings, owner, stranger, assistant, valkey_client):
    settings.QUEUE_LIMIT = 2
    send_many(owner, assistant, 2)
    another = begin(stranger, assistant)
    error = refused(stranger, another)
    assert (error.code, error.retry_after) == ("busy", wait_estimate.RETRY_AFTER)
    set_throughput(valkey_client, Throughput(service=20.0, running=10, capacity=10))
    assert refused(stranger, another).retry_after == 2.0
    set_throughput(valkey_client, Throughput(service=0.2, running=10, capacity=10))
    assert refused(stranger, another).retry_after == wait_estimate.MIN_RETRY_AFTER


def test_messages_are_refused_without_redis(owner, conversation, without_redis):
    error = refused(owner, conversation)
    assert (error.code, error.retry_after) == ("unavailable", wait_estimate.RETRY_AFTER)


@pytest.mark.parametrize(
    ("limit", "value", "status", "code"),
    [("QUEUE_LIMIT", 1, 503, "busy"), ("USER_QUEUE_LIMIT", 0, 429, "rate_limited")],
)
@pytest.mark.parametrize("accept", ["application/json", "text/html"])
def test_http_refusals_have_retry_after(
    settings, owner, assistant, limit, value, status, code, accept
):
    settings.USER_CONCURRENCY = 1
    setattr(settings, limit, value)
    send_many(owner, assistant, 1)
    client = Client()
    client.force_login(owner)
    response = client.post(
        reverse("chat:create"), {"text": "Hello", "client_id": "a"}, headers={"accept": accept}
    )
    assert response.status_code == status
    assert response["Retry-After"] == "5"
    if accept == "application/json":
        assert response.json()["code"] == code
        assert response.json()["retry_after"] == wait_estimate.RETRY_AFTER
    assert errors.ERRORS[code] in response.content.decode()


# --- Position and expected wait ---------------------------------------------------------------


def test_wait_is_zero_below_capacity():
    free = Throughput(service=10.0, running=3, capacity=5)
    assert [free.wait(position) for position in (1, 2, 3, 7)] == [0.0, 0.0, 2.0, 10.0]


def test_wait_is_unknown_without_worker(settings):
    settings.USER_CONCURRENCY = 2
    nobody = Throughput(service=10.0, running=0, capacity=0)
    assert nobody.wait(1) is None
    assert nobody.wait_throttled(1, 0, 2) is None


def test_throughput_is_mean_of_newest_runs(owner, assistant):
    assert wait_estimate.measure(capacity=5) is None
    ended, running, _ = send_many(owner, assistant, 3)
    now = timezone.now()
    Run.objects.filter(pk=ended.pk).update(
        status="done", started_at=now - timedelta(seconds=8), ended_at=now
    )
    mark_running(running, started_at=now)
    assert wait_estimate.measure(capacity=5) == Throughput(service=8.0, running=1, capacity=5)


def test_message_gets_position_and_expected_wait(
    two_each, owner, stranger, assistant, valkey_client
):
    (alone,) = send_many(stranger, assistant, 1)
    status = describe.queue_status(access.run(stranger, alone.pk))
    assert status.eta is None  # nothing was measured yet
    set_throughput(valkey_client, Throughput(service=10.0, running=4, capacity=4))
    events = [
        start.send(user=owner, text="Hello", client_id=f"message-{number}").event
        for number in range(3)
    ]
    # Two are queued behind the stranger's; the third is throttled until one of them has ended.
    expected = [(2, 5.0, False), (3, 7.5, False), (1, 5.0 + 10.0, True)]
    assert [(event.position, event.eta, event.held) for event in events] == expected
    again = [describe.queue_status(access.run(owner, event.run)) for event in events]
    assert [(event.position, event.eta, event.held) for event in again] == expected


def test_requeued_run_has_position_of_next_attempt(owner, lost):
    status = describe.queue_status(access.run(owner, lost.pk))
    assert status == protocol.RunWaiting(run=lost.pk, attempt=2, position=1)


class Subscriber:
    """Receives the events that are published to the groups of runs."""

    def __init__(self, client: redis.Redis, *sent: Run) -> None:
        layer = get_layer()
        self._pubsub = client.pubsub(ignore_subscribe_messages=True)
        self._pubsub.subscribe(*(layer.raw_channel(groups.run_group(run.pk)) for run in sent))
        for _ in sent:
            self._pubsub.get_message(timeout=5)

    def receive(self, count: int) -> list[tuple[str, int, str]]:
        """Return the next events: run, attempt, and position in the form of `positions`."""
        found: list[tuple[str, int, str]] = []
        while len(found) < count:
            message = self._pubsub.get_message(timeout=5)
            assert message is not None, found
            event = json.loads(message["data"])
            assert event["type"] == "run.waiting"
            assert "seq" not in event
            throttled = "throttled " if event.get("held") else ""
            found.append((event["run"], event["attempt"], f"{throttled}{event['position']}"))
        return found

    def is_silent(self) -> bool:
        return self._pubsub.get_message(timeout=0.1) is None


def test_changed_positions_are_published(two_each, owner, stranger, assistant, valkey_client):
    first, second, third = send_many(owner, assistant, 3)
    (other,) = send_many(stranger, assistant, 1)
    subscriber = Subscriber(valkey_client, first, second, third, other)
    sweeper = WaitingRuns()
    sweep(sweeper, 0)
    assert subscriber.is_silent()  # all clients have just received them
    sweep(sweeper, 2)
    names = [str(run.pk) for run in (first, second, third, other)]
    assert subscriber.receive(4) == [
        (names[0], 1, "1"),
        (names[1], 1, "2"),
        (names[2], 1, "throttled 1"),
        (names[3], 1, "3"),
    ]
    take(valkey_client, first)
    mark_running(first)
    sweep(sweeper, 4)
    assert subscriber.receive(3) == [
        (names[1], 1, "1"),
        (names[2], 1, "throttled 1"),
        (names[3], 1, "2"),
    ]
    queue.release(owner.pk, first.pk, 1)
    sweep(sweeper, 6)
    assert subscriber.receive(3) == [(names[1], 1, "1"), (names[2], 1, "3"), (names[3], 1, "2")]


def test_requeued_run_publishes_next_attempt(lost, valkey_client):
    subscriber = Subscriber(valkey_client, lost)
    sweep(WaitingRuns(), 2)
    assert subscriber.receive(1) == [(str(lost.pk), 2, "1")]


# --- Lost jobs --------------------------------------------------------------------------------


def test_job_of_dead_worker_is_requeued_first(two_each, owner, stranger, assistant, valkey_client):
    taken, _, throttled = send_many(owner, assistant, 3)
    (other,) = send_many(stranger, assistant, 1)
    take(valkey_client, taken)
    sweeper = WaitingRuns()
    sweep(sweeper, 2, 4, 6)
    assert positions(taken, throttled) == [None, "throttled 1"]  # it may be being claimed
    sweep(sweeper, 2 + REQUEUE_AFTER.total_seconds())
    assert positions(taken, throttled, other) == [1, "throttled 1", 3]
    assert valkey_client.llen(INTERMEDIATE) == 0


def test_dead_job_does_not_block_only_slot(settings, owner, assistant, valkey_client):
    settings.USER_CONCURRENCY = 1
    taken, throttled = send_many(owner, assistant, 2)
    take(valkey_client, taken)
    sweep(WaitingRuns(), *range(2, 12, 2))
    assert positions(taken, throttled) == [1, "throttled 1"]


def test_runs_are_requeued_in_order_after_flush(
    two_each, owner, stranger, assistant, valkey_client
):
    sent = [*send_many(owner, assistant, 3), *send_many(stranger, assistant, 1)]
    valkey_client.flushall()
    sweeper = WaitingRuns()
    sweep(sweeper, 2)
    new = send(stranger, begin(stranger, assistant))
    sweep(sweeper, 4, 6, 8)
    assert positions(new, *sent) == [1, 2, 3, "throttled 1", 4]


def test_sweeps_reach_all_runs_in_turn(
    two_each, owner, stranger, assistant, valkey_client, monkeypatch
):
    monkeypatch.setattr(waiting_runs, "BATCH", 2)
    sent = [*send_many(owner, assistant, 4), *send_many(stranger, assistant, 1)]
    subscriber = Subscriber(valkey_client, *sent)
    sweeper = WaitingRuns()
    sweep(sweeper, 2, 4, 6)
    assert {run for run, _, _ in subscriber.receive(5)} == {str(run.pk) for run in sent}
    valkey_client.flushall()
    sweep(sweeper, *range(8, 40, 2))
    assert None not in positions(*sent)
    assert positions(sent[3])[0] in ("throttled 1", "throttled 2")


# --- For staff --------------------------------------------------------------------------------


def test_live_queue_shows_users_and_waits(two_each, owner, stranger, assistant, valkey_client):
    now = timezone.now()
    made, *rest = send_many(owner, assistant, 4)
    send_many(stranger, assistant, 1)
    take(valkey_client, made)
    mark_running(made, started_at=now)
    Run.objects.filter(pk=rest[0].pk).update(queued_at=now - timedelta(seconds=90))
    set_throughput(valkey_client, Throughput(service=10.0, running=4, capacity=4))
    found = queue_stats.queue_figures(now)
    assert (found.queued, found.throttled, found.running) == (2, 2, 1)
    assert (found.oldest_wait, found.service_time, found.expected_wait) == (90.0, 10.0, 7.5)
    assert [(user.email, user.running, user.queued, user.throttled) for user in found.users] == [
        (owner.email, 1, 1, 2),
        (stranger.email, 0, 1, 0),
    ]
    assert found.workers == []


def test_idle_queue_has_figures():
    found = queue_stats.queue_figures(timezone.now())
    assert (found.queued, found.throttled, found.running, found.users) == (0, 0, 0, [])
    assert (found.oldest_wait, found.service_time, found.expected_wait) == (None, None, None)
