"""No conversation is ever stuck: runs without a worker get another or end, those without a job too."""

from __future__ import annotations

from datetime import timedelta

import pytest
import redis
from django.utils import timezone

from chat import errors, protocol
from chat.generation import generate
from chat.models import Run
from chat.recovery.sweeper import LEASE, MISSING, Sweeper
from chat.runs import finish, queue
from chat.streaming import leases
from chat.streaming import log as run_log
from chat.streaming.leases import lease_key
from chatproject.lib import db
from tests.support.conversations import begin, send
from tests.support.sockets import open_tab

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("valkey_url")]

SECOND = timedelta(seconds=1)


@pytest.fixture
def run(owner, conversation) -> Run:
    """A run that a worker claimed a minute ago."""
    run = send(owner, conversation)
    Run.objects.filter(pk=run.pk).update(
        status="running", attempt=1, started_at=timezone.now() - timedelta(minutes=1)
    )
    return run


def sweep_for(sweeper: Sweeper, seconds: float, *, start=None) -> None:
    """Sweep every two seconds for so long, by a clock of the test's own."""
    start = start or timezone.now()
    for step in range(int(seconds / 2) + 1):
        sweeper.sweep(start + timedelta(seconds=2 * step))


def status(run: Run) -> str:
    run.refresh_from_db()
    return str(run.status)


def test_a_run_without_a_lease_gets_another_attempt_in_time(run, valkey_client):
    """A worker's last renewal, its lease, two sweeps and a claim: all within 15 seconds."""
    valkey_client.delete("rq:queue:chat")
    sweeper = Sweeper()
    now = timezone.now()
    valkey_client.set(lease_key(run.pk), 1)
    sweep_for(sweeper, 20, start=now)
    assert status(run) == "running"
    valkey_client.delete(lease_key(run.pk))  # at most LEASE after the kill
    sweep_for(sweeper, 15 - LEASE.total_seconds() - 2, start=now + 22 * SECOND)
    assert (status(run), run.attempt) == ("queued", 1)
    assert queue.position(run)


def test_a_run_without_a_lease_and_attempts_ends_as_failed_with_its_partial_text(
    run, valkey_client, settings
):
    settings.RUN_ATTEMPTS = 1
    for seq, text in [(2, "Half "), (3, "a reply")]:
        delta = protocol.TextDelta(run=run.pk, attempt=1, seq=seq, text=text)
        valkey_client.xadd(run_log.log_key(run.pk), {"e": delta.encode()}, id=f"{seq}-0")
    sweep_for(Sweeper(), 12)
    assert status(run) == "failed"
    assert run.error_code == "unavailable"
    assert run.error_message == errors.INTERRUPTED
    assert run.message.text == "Half a reply"
    assert run.message.html
    last = valkey_client.xrevrange(run_log.log_key(run.pk), count=1)[0][1][b"e"]
    assert protocol.header(last).type == "run.failed"
    assert protocol.header(last).seq == run.seq
    send(run.user, run.conversation)  # the conversation is free again


def test_it_ends_also_when_the_log_is_gone(run, settings):
    settings.RUN_ATTEMPTS = 1
    sweep_for(Sweeper(), 12)
    assert status(run) == "failed"
    assert run.message.text == ""


@pytest.mark.usefixtures("socket_loop")
@pytest.mark.parametrize("kept", [0, 2])
async def test_its_followers_hear_of_the_end_at_once_when_redis_lost_its_log(
    owner, conversation, settings, valkey_client, kept
):
    """Redis was restarted and came back with none, or only the first, of what it had."""
    run = await db.run(send, owner, conversation)
    long_ago = timezone.now() - timedelta(minutes=1)
    await db.run(
        Run.objects.filter(pk=run.pk).update, status="running", attempt=1, started_at=long_ago
    )
    settings.RUN_ATTEMPTS = 1
    told = [
        protocol.RunStarted(run=run.pk, attempt=1, seq=1).encode(),
        *(
            protocol.TextDelta(run=run.pk, attempt=1, seq=seq, text=f"{seq} ").encode()
            for seq in range(2, 6)
        ),
    ]
    for seq, data in enumerate(told, start=1):
        valkey_client.xadd(run_log.log_key(run.pk), {"e": data}, id=f"{seq}-0")
    async with open_tab(owner) as tab:
        await tab.send(type="resume", run=str(run.pk), after=0)
        while tab.text() != "2 3 4 5 ":
            await tab.receive()
        valkey_client.delete(run_log.log_key(run.pk))
        for seq, data in enumerate(told[:kept], start=1):
            valkey_client.xadd(run_log.log_key(run.pk), {"e": data}, id=f"{seq}-0")
        await db.run(sweep_for, Sweeper(), 12)
        end = await tab.until("run.failed")
    assert end["text"] == ("" if kept == 0 else "2 ")


def test_a_run_with_a_lease_is_left_alone(run, valkey_client):
    valkey_client.set(lease_key(run.pk), 1)
    sweep_for(Sweeper(), 60)
    assert status(run) == "running"


def test_a_run_that_was_just_claimed_is_left_alone(run):
    sweeper = Sweeper()
    now = timezone.now()
    sweep_for(sweeper, 20, start=now)  # it knows that Redis answers
    other = timezone.now() + timedelta(seconds=20)
    Run.objects.filter(pk=run.pk).update(status="running", started_at=other, ended_at=None)
    sweeper.sweep(other + SECOND)
    sweeper.sweep(other + LEASE - SECOND)
    assert status(run) == "running"


def test_it_waits_one_lease_after_it_was_started(run):
    sweeper = Sweeper()
    now = timezone.now()
    sweep_for(sweeper, LEASE.total_seconds() - 2, start=now)
    assert status(run) == "running"


def test_a_lease_that_comes_back_saves_the_run(run, valkey_client):
    sweeper = Sweeper()
    now = timezone.now()
    valkey_client.set(lease_key(run.pk), 1)
    sweep_for(sweeper, 20, start=now)
    valkey_client.flushall()
    sweeper.sweep(now + 22 * SECOND)
    valkey_client.set(lease_key(run.pk), 1)  # the worker renews it within two seconds
    sweeper.sweep(now + 24 * SECOND)
    valkey_client.flushall()
    sweeper.sweep(now + 26 * SECOND)
    assert MISSING > 2 * SECOND
    assert status(run) == "running"


def test_after_an_outage_of_redis_it_waits_one_lease(run, valkey_client, monkeypatch):
    sweeper = Sweeper()
    now = timezone.now()
    valkey_client.set(lease_key(run.pk), 1)
    sweep_for(sweeper, 20, start=now)

    with monkeypatch.context() as patch:
        patch.setattr(leases, "sync_client", lambda: redis.Redis(port=9))
        with pytest.raises(redis.RedisError):
            sweeper.sweep(now + 30 * SECOND)
    valkey_client.flushall()
    sweep_for(sweeper, LEASE.total_seconds() - 2, start=now + 32 * SECOND)
    assert status(run) == "running"
    sweep_for(sweeper, 12, start=now + 40 * SECOND)
    assert status(run) == "queued"


def test_a_queued_run_whose_job_is_gone_is_queued_again(owner, conversation, valkey_client):
    run = send(owner, conversation)
    valkey_client.flushall()
    sweep_for(Sweeper(), 10, start=timezone.now() + SECOND)
    assert queue.position(run)


def test_an_end_that_its_worker_could_not_tell_is_told(owner, conversation, valkey_client):
    """It died between the COMMIT of the end and its publication, so its lease is still there."""
    run = send(owner, conversation)
    generate.claim(run.pk, 1)
    valkey_client.set(lease_key(run.pk), 1)
    event = finish.end(
        run_id=run.pk,
        attempt=1,
        status=Run.Status.RUNNING,
        seq=7,
        outcome=finish.Outcome(status=Run.Status.DONE, text="All of it"),
    )
    assert event is not None
    sweeper = Sweeper()
    now = timezone.now()
    sweeper.sweep(now)
    assert not valkey_client.exists(run_log.log_key(run.pk))  # the worker may be about to
    sweeper.sweep(now + 2 * SECOND)
    told = valkey_client.xrange(run_log.log_key(run.pk))
    assert [fields[b"e"] for _, fields in told] == [event.encode()]
    sweeper.sweep(now + 3 * SECOND)
    assert valkey_client.xlen(run_log.log_key(run.pk)) == 1


def test_all_runs_of_a_dead_worker_are_found_at_once(owner, assistant, valkey_client):
    runs = [send(owner, begin(owner, assistant)) for _ in range(5)]
    for run in runs:
        generate.claim(run.pk, 1)
    valkey_client.flushall()
    sweep_for(Sweeper(), 14, start=timezone.now() + LEASE)
    for run in runs:
        assert (status(run), run.attempt) == ("queued", 1)
        assert queue.position(run) is not None
