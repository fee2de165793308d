"""Who waits for whom, and what those who wait are told."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta

import pytest
import redis
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from billing.models import Account, Hold
from chat import errors, protocol
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

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("valkey_url")]

LINE = "rq:queue:chat"
INTERMEDIATE = "rq:queue:chat:intermediate"


@pytest.fixture
def two_each(settings):
    """Of each user two runs may be in line or being made."""
    settings.USER_CONCURRENCY = 2


@pytest.fixture
def redis_away(settings) -> Iterator[None]:
    """A Redis that does not answer."""
    settings.REDIS_URL = f"redis://127.0.0.1:{free_port()}/0"
    _forget_clients()
    yield
    _forget_clients()


def _forget_clients() -> None:
    sync_client.cache_clear()
    queue.rq_queue.cache_clear()


def send_many(user, assistant, count: int) -> list[Run]:
    """So many messages, each the first of its conversation."""
    return [send(user, begin(user, assistant)) for _ in range(count)]


def positions(*sent: Run) -> list[object]:
    """Where the runs are: a number in line, "held 1" for one held back, None without a place."""
    places = [queue.position(run) for run in sent]
    return [
        place and (f"held {place.number}" if place.is_throttled else place.number)
        for place in places
    ]


def take(client: redis.Redis, run: Run) -> None:
    """Take a run's job as a worker does that dies in the same moment."""
    name = queue.job_id(run.pk, run.attempt + 1)
    assert client.lmove(LINE, INTERMEDIATE, "LEFT", "RIGHT") == name.encode()


def sweep(sweeper: WaitingRuns, *seconds: float) -> None:
    """Sweep at these seconds from now."""
    now = timezone.now()
    for moment in seconds:
        sweeper.sweep(now + timedelta(seconds=moment))


def know(client: redis.Redis, known: Throughput) -> None:
    client.set(
        wait_estimate.KEY,
        json.dumps({field: getattr(known, field) for field in known.__struct_fields__}),
    )


# --- The line ---------------------------------------------------------------------------------


def test_of_each_user_only_so_many_are_in_line(two_each, owner, stranger, assistant):
    many = send_many(owner, assistant, 5)
    (other,) = send_many(stranger, assistant, 1)
    assert positions(*many) == [1, 2, "held 1", "held 2", "held 3"]
    assert positions(other) == [3]


def test_places_of_many_are_those_of_each(two_each, owner, stranger, assistant):
    sent = [*send_many(owner, assistant, 4), *send_many(stranger, assistant, 3)]
    assert queue.positions(sent) == {run.pk: queue.position(run) for run in sent}


def test_a_job_that_is_queued_once_more_is_in_line_once(two_each, owner, assistant):
    first, second, third = send_many(owner, assistant, 3)
    for run in (first, second, third, first):
        queue.enqueue(run)
    assert queue.length().queued == 2
    assert sorted(map(str, positions(first, second, third))) == ["1", "2", "held 1"]


def test_a_slot_that_is_freed_goes_to_the_users_next(
    two_each, owner, stranger, assistant, valkey_client
):
    first, second, third = send_many(owner, assistant, 3)
    take(valkey_client, first)
    queue.release(owner.pk, first.pk, 1)
    assert positions(second, third) == [1, 2]
    queue.release(stranger.pk, second.pk, 1)  # of another user: it frees nothing
    assert positions(second, third) == [1, 2]


def test_the_next_attempt_goes_first_and_takes_the_slot_of_the_one_before(
    settings, owner, stranger, assistant, valkey_client
):
    settings.USER_CONCURRENCY = 1
    lost, held = send_many(owner, assistant, 2)
    (other,) = send_many(stranger, assistant, 1)
    take(valkey_client, lost)
    Run.objects.filter(pk=lost.pk).update(attempt=1)
    lost.refresh_from_db()
    queue.enqueue(lost)
    assert positions(lost, other, held) == [1, 2, "held 1"]


def test_a_run_that_is_stopped_while_it_waits_leaves_the_line(
    two_each, owner, assistant, valkey_client
):
    first, second, third, fourth = send_many(owner, assistant, 4)
    stop_run(user=owner, run_id=third.pk)
    assert positions(first, second, third, fourth) == [1, 2, None, "held 1"]
    stop_run(user=owner, run_id=first.pk)
    assert positions(first, second, third, fourth) == [None, 1, None, 2]
    assert not valkey_client.exists(
        *(f"rq:job:{queue.job_id(run.pk, 1)}" for run in (first, third))
    )


# --- Refused before anything is stored --------------------------------------------------------


def state() -> tuple[object, ...]:
    """What a message would change."""
    counts = (Conversation.objects.count(), Message.objects.count(), Run.objects.count())
    return (*counts, Hold.objects.count(), *Account.objects.values_list("balance", "held", "seq"))


def refused(user, conversation) -> ChatError:
    before = state()
    with pytest.raises(ChatError) as error:
        send(user, conversation)
    assert state() == before
    return error.value


def test_a_user_with_too_many_waiting_is_refused_and_nobody_else(
    settings, owner, stranger, assistant, valkey_client
):
    settings.USER_CONCURRENCY, settings.USER_QUEUE_LIMIT = 2, 2
    sent = send_many(owner, assistant, 4)
    another = begin(owner, assistant)
    error = refused(owner, another)
    assert (error.code, error.retry_after) == ("rate_limited", wait_estimate.RETRY_AFTER)
    know(valkey_client, Throughput(service=6.0, running=2, capacity=500))
    assert refused(owner, another).retry_after == 3.0
    # What was sent before is answered, not refused.
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


def test_no_run_may_be_held_back_where_the_limit_is_none(settings, owner, assistant):
    settings.USER_CONCURRENCY, settings.USER_QUEUE_LIMIT = 1, 0
    send_many(owner, assistant, 1)
    assert refused(owner, begin(owner, assistant)).code == "rate_limited"


def test_a_full_line_refuses_everybody(settings, owner, stranger, assistant, valkey_client):
    settings.QUEUE_LIMIT = 2
    send_many(owner, assistant, 2)
    another = begin(stranger, assistant)
    error = refused(stranger, another)
    assert (error.code, error.retry_after) == ("busy", wait_estimate.RETRY_AFTER)
    know(valkey_client, Throughput(service=20.0, running=10, capacity=10))
    assert refused(stranger, another).retry_after == 2.0
    know(valkey_client, Throughput(service=0.2, running=10, capacity=10))
    assert refused(stranger, another).retry_after == wait_estimate.MIN_RETRY_AFTER


def test_without_redis_everybody_is_refused(owner, conversation, redis_away):
    error = refused(owner, conversation)
    assert (error.code, error.retry_after) == ("unavailable", wait_estimate.RETRY_AFTER)


@pytest.mark.parametrize(
    ("limits", "status", "code"),
    [({"QUEUE_LIMIT": 1}, 503, "busy"), ({"USER_QUEUE_LIMIT": 0}, 429, "rate_limited")],
)
@pytest.mark.parametrize("accept", ["application/json", "text/html"])
def test_the_doors_of_http_say_when_to_come_back(
    settings, owner, assistant, limits, status, code, accept
):
    settings.USER_CONCURRENCY = 1
    for name, limit in limits.items():
        setattr(settings, name, limit)
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


def test_while_workers_have_room_nobody_waits():
    free = Throughput(service=10.0, running=3, capacity=5)
    assert [free.wait(position) for position in (1, 2, 3, 7)] == [0.0, 0.0, 2.0, 10.0]


def test_without_a_worker_nobody_knows(settings):
    settings.USER_CONCURRENCY = 2
    nobody = Throughput(service=10.0, running=0, capacity=0)
    assert nobody.wait(1) is None
    assert nobody.wait_throttled(1, 0) is None


def test_the_pace_is_the_mean_of_the_newest_runs(owner, assistant):
    assert wait_estimate.measure(capacity=5) is None
    ended, running, _ = send_many(owner, assistant, 3)
    now = timezone.now()
    Run.objects.filter(pk=ended.pk).update(
        status="done", started_at=now - timedelta(seconds=8), ended_at=now
    )
    Run.objects.filter(pk=running.pk).update(status="running", started_at=now)
    assert wait_estimate.measure(capacity=5) == Throughput(service=8.0, running=1, capacity=5)


def test_a_message_is_answered_with_its_place_and_expected_wait(
    two_each, owner, stranger, assistant, valkey_client
):
    (alone,) = send_many(stranger, assistant, 1)
    assert (
        describe.queue_status(user=stranger, run_id=alone.pk).eta is None
    )  # nothing was measured yet
    know(valkey_client, Throughput(service=10.0, running=4, capacity=4))
    told = [
        start.send(user=owner, text="Hello", client_id=f"message-{number}").event
        for number in range(3)
    ]
    # Two in line behind the stranger's; the third when one of those two has ended, and then the line.
    assert [(event.position, event.eta, event.held) for event in told] == [
        (2, 5.0, False),
        (3, 7.5, False),
        (1, 5.0 + 10.0, True),
    ]
    again = [describe.queue_status(user=owner, run_id=event.run) for event in told]
    assert [(event.position, event.eta, event.held) for event in again] == [
        (2, 5.0, False),
        (3, 7.5, False),
        (1, 5.0 + 10.0, True),
    ]


def test_who_comes_to_a_run_that_lost_its_worker_is_told_its_place(owner, conversation):
    run = send(owner, conversation)
    Run.objects.filter(pk=run.pk).update(attempt=1)
    run.refresh_from_db()
    queue.enqueue(run)
    told = describe.queue_status(user=owner, run_id=run.pk)
    assert told == protocol.RunWaiting(run=run.pk, attempt=2, position=1)


class Ear:
    """Hears what is published on the groups of runs."""

    def __init__(self, client: redis.Redis, *sent: Run) -> None:
        layer = get_layer()
        self._pubsub = client.pubsub(ignore_subscribe_messages=True)
        self._pubsub.subscribe(*(layer.raw_channel(groups.run_group(run.pk)) for run in sent))
        for _ in sent:
            self._pubsub.get_message(timeout=5)

    def heard(self, count: int) -> list[tuple[str, int, str]]:
        """The next events: run, attempt, and the place as `positions` has it."""
        found: list[tuple[str, int, str]] = []
        while len(found) < count:
            message = self._pubsub.get_message(timeout=5)
            assert message is not None, found
            event = json.loads(message["data"])
            assert event["type"] == "run.waiting"
            assert "seq" not in event
            held = "held " if event.get("held") else ""
            found.append((event["run"], event["attempt"], f"{held}{event['position']}"))
        return found

    def is_silent(self) -> bool:
        return self._pubsub.get_message(timeout=0.1) is None


def test_those_who_wait_hear_how_the_line_moves(
    two_each, owner, stranger, assistant, valkey_client
):
    first, second, third = send_many(owner, assistant, 3)
    (other,) = send_many(stranger, assistant, 1)
    ear = Ear(valkey_client, first, second, third, other)
    sweeper = WaitingRuns()
    sweep(sweeper, 0)
    assert ear.is_silent()  # all of them have just been told
    sweep(sweeper, 2)
    names = [str(run.pk) for run in (first, second, third, other)]
    assert ear.heard(4) == [
        (names[0], 1, "1"),
        (names[1], 1, "2"),
        (names[2], 1, "held 1"),
        (names[3], 1, "3"),
    ]
    take(valkey_client, first)
    Run.objects.filter(pk=first.pk).update(status="running", attempt=1)
    sweep(sweeper, 4)
    assert ear.heard(3) == [(names[1], 1, "1"), (names[2], 1, "held 1"), (names[3], 1, "2")]
    queue.release(owner.pk, first.pk, 1)
    sweep(sweeper, 6)
    assert ear.heard(3) == [(names[1], 1, "1"), (names[2], 1, "3"), (names[3], 1, "2")]


def test_a_run_that_lost_its_worker_hears_of_its_next_attempt(owner, conversation, valkey_client):
    run = send(owner, conversation)
    Run.objects.filter(pk=run.pk).update(attempt=1)
    run.refresh_from_db()
    queue.enqueue(run)
    ear = Ear(valkey_client, run)
    sweep(WaitingRuns(), 2)
    assert ear.heard(1) == [(str(run.pk), 2, "1")]


# --- Nobody is forgotten ----------------------------------------------------------------------


def test_a_job_that_a_dead_worker_took_is_queued_again_at_the_front(
    two_each, owner, stranger, assistant, valkey_client
):
    taken, held = send_many(owner, assistant, 3)[::2]
    (other,) = send_many(stranger, assistant, 1)
    take(valkey_client, taken)
    sweeper = WaitingRuns()
    sweep(sweeper, 2, 4, 6)
    assert positions(taken, held) == [None, "held 1"]  # it may be being claimed
    sweep(sweeper, 2 + REQUEUE_AFTER.total_seconds())
    assert positions(taken, held, other) == [1, "held 1", 3]
    assert valkey_client.llen(INTERMEDIATE) == 0


def test_a_user_whose_only_slot_a_dead_job_holds_goes_on(settings, owner, assistant, valkey_client):
    settings.USER_CONCURRENCY = 1
    taken, held = send_many(owner, assistant, 2)
    take(valkey_client, taken)
    sweep(WaitingRuns(), *range(2, 12, 2))
    assert positions(taken, held) == [1, "held 1"]


def test_after_a_flush_all_get_in_line_again_in_their_order(
    two_each, owner, stranger, assistant, valkey_client
):
    sent = [*send_many(owner, assistant, 3), *send_many(stranger, assistant, 1)]
    valkey_client.flushall()
    sweeper = WaitingRuns()
    sweep(sweeper, 2)
    new = send(stranger, begin(stranger, assistant))
    sweep(sweeper, 4, 6, 8)
    assert positions(new, *sent) == [1, 2, 3, "held 1", 4]


def test_of_more_runs_than_one_sweep_sees_each_has_its_turn(
    two_each, owner, stranger, assistant, valkey_client, monkeypatch
):
    monkeypatch.setattr(waiting_runs, "BATCH", 2)
    sent = [*send_many(owner, assistant, 4), *send_many(stranger, assistant, 1)]
    ear = Ear(valkey_client, *sent)
    sweeper = WaitingRuns()
    sweep(sweeper, 2, 4, 6)
    assert {run for run, _, _ in ear.heard(5)} == {str(run.pk) for run in sent}
    valkey_client.flushall()
    sweep(sweeper, *range(8, 40, 2))
    assert None not in positions(*sent)
    assert positions(sent[3])[0] in ("held 1", "held 2")


# --- For staff --------------------------------------------------------------------------------


def test_staff_see_the_live_queue(two_each, owner, stranger, assistant, valkey_client):
    now = timezone.now()
    made, *rest = send_many(owner, assistant, 4)
    send_many(stranger, assistant, 1)
    take(valkey_client, made)
    Run.objects.filter(pk=made.pk).update(status="running", attempt=1, started_at=now)
    Run.objects.filter(pk=rest[0].pk).update(queued_at=now - timedelta(seconds=90))
    know(valkey_client, Throughput(service=10.0, running=4, capacity=4))
    found = queue_stats.queue_figures(now)
    assert (found.queued, found.throttled, found.running) == (2, 2, 1)
    assert (found.oldest_wait, found.service_time, found.expected_wait) == (90.0, 10.0, 7.5)
    assert [(user.email, user.running, user.queued, user.throttled) for user in found.users] == [
        (owner.email, 1, 1, 2),
        (stranger.email, 0, 1, 0),
    ]
    assert found.workers == []


def test_an_idle_queue_has_figures_too():
    found = queue_stats.queue_figures(timezone.now())
    assert (found.queued, found.throttled, found.running, found.users) == (0, 0, 0, [])
    assert (found.oldest_wait, found.service_time, found.expected_wait) == (None, None, None)
