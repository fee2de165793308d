"""The sweeper: runs without a worker or a job are requeued or ended, so no conversation is stuck."""

from __future__ import annotations

from datetime import datetime, timedelta

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
from tests.support.bad_rows import refused
from tests.support.conversations import send
from tests.support.runs import add_to_log, delta, mark_running, send_many, send_running
from tests.support.sockets import open_tab

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("valkey_url")]

SECOND = timedelta(seconds=1)


@pytest.fixture
def run(owner, conversation) -> Run:
    """A run that a worker claimed a minute ago."""
    return send_running(owner, conversation, started_at=timezone.now() - timedelta(minutes=1))


@pytest.fixture
def now() -> datetime:
    return timezone.now()


@pytest.fixture
def sweeper() -> Sweeper:
    return Sweeper()


def sweep_for(sweeper: Sweeper, seconds: float, *, start=None) -> None:
    """Sweep every two seconds for that long, by a simulated clock."""
    start = start or timezone.now()
    for step in range(int(seconds / 2) + 1):
        sweeper.sweep(start + timedelta(seconds=2 * step))


def status(run: Run) -> str:
    run.refresh_from_db()
    return str(run.status)


def test_run_without_lease_is_requeued_in_time(run, valkey_client, sweeper, now):
    """A worker's last renewal, its lease, two sweeps and a claim: all within 15 seconds."""
    valkey_client.delete("rq:queue:chat")
    valkey_client.set(lease_key(run.pk), 1)
    sweep_for(sweeper, 20, start=now)
    assert status(run) == "running"
    valkey_client.delete(lease_key(run.pk))  # at most LEASE after the kill
    sweep_for(sweeper, 15 - LEASE.total_seconds() - 2, start=now + 22 * SECOND)
    assert (status(run), run.attempt) == ("queued", 1)
    assert queue.position(run)


@pytest.mark.parametrize("pieces", [["Half ", "a reply"], []], ids=["log", "lost log"])
def test_run_without_attempts_fails_with_logged_text(run, valkey_client, settings, pieces):
    settings.RUN_ATTEMPTS = 1
    events = [delta(run, seq, piece) for seq, piece in enumerate(pieces, start=2)]
    add_to_log(valkey_client, *events)
    sweep_for(Sweeper(), 12)
    assert status(run) == "failed"
    assert run.error_code == "unavailable"
    assert run.error_message == errors.INTERRUPTED
    assert run.message.text == "".join(pieces)
    assert bool(run.message.html) == bool(pieces)
    last = valkey_client.xrevrange(run_log.log_key(run.pk), count=1)[0][1][b"e"]
    assert protocol.header(last).type == "run.failed"
    assert protocol.header(last).seq == run.seq
    send(run.user, run.conversation)  # the conversation is free again


@pytest.mark.usefixtures("socket_loop")
@pytest.mark.parametrize("kept", [0, 2])
async def test_followers_receive_end_after_lost_log(run, owner, settings, valkey_client, kept):
    """Redis was restarted and has none, or only the first, of the events."""
    settings.RUN_ATTEMPTS = 1
    events = [
        protocol.RunStarted(run=run.pk, attempt=1, seq=1),
        *(delta(run, seq, f"{seq} ") for seq in range(2, 6)),
    ]
    add_to_log(valkey_client, *events)
    async with open_tab(owner) as tab:
        await tab.send(type="resume", run=str(run.pk), after=0)
        while tab.text() != "2 3 4 5 ":
            await tab.receive()
        valkey_client.delete(run_log.log_key(run.pk))
        add_to_log(valkey_client, *events[:kept])
        await db.run(sweep_for, Sweeper(), 12)
        end = await tab.until("run.failed")
    assert end["text"] == ("" if kept == 0 else "2 ")


def test_run_with_lease_is_left_alone(run, valkey_client):
    valkey_client.set(lease_key(run.pk), 1)
    sweep_for(Sweeper(), 60)
    assert status(run) == "running"


def test_just_claimed_run_is_left_alone(run, sweeper, now):
    sweep_for(sweeper, 20, start=now)  # Redis has been reachable for longer than a lease
    other = timezone.now() + timedelta(seconds=20)
    mark_running(run, started_at=other)
    sweeper.sweep(other + SECOND)
    sweeper.sweep(other + LEASE - SECOND)
    assert status(run) == "running"


def test_new_sweeper_waits_one_lease(run, sweeper, now):
    sweep_for(sweeper, LEASE.total_seconds() - 2, start=now)
    assert status(run) == "running"


def test_renewed_lease_saves_run(run, valkey_client, sweeper, now):
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


def test_sweeper_waits_one_lease_after_redis_outage(run, valkey_client, monkeypatch, sweeper, now):
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


def test_queued_run_without_job_is_requeued(owner, conversation, valkey_client):
    run = send(owner, conversation)
    valkey_client.flushall()
    sweep_for(Sweeper(), 10, start=timezone.now() + SECOND)
    assert queue.position(run)


def test_end_of_dead_worker_is_published(owner, conversation, valkey_client):
    """It died between the COMMIT of the end and its publication, so its lease still exists."""
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
    sweeper = Sweeper()
    now = timezone.now()
    sweeper.sweep(now)
    assert not valkey_client.exists(run_log.log_key(run.pk))  # the worker may be about to
    for second in (2, 3):
        sweeper.sweep(now + second * SECOND)
        log = valkey_client.xrange(run_log.log_key(run.pk))
        assert [fields[b"e"] for _, fields in log] == [event.encode()]


def test_all_runs_of_dead_worker_are_requeued(owner, assistant, valkey_client):
    runs = send_many(owner, assistant, 5)
    for run in runs:
        generate.claim(run.pk, 1)
    valkey_client.flushall()
    sweep_for(Sweeper(), 14, start=timezone.now() + LEASE)
    for run in runs:
        assert (status(run), run.attempt) == ("queued", 1)
        assert queue.position(run) is not None


# --- One run whose recovery fails ----------------------------------------------------------------


def test_bad_log_does_not_stop_the_sweep(owner, assistant, valkey_client, caplog):
    """Its run is set aside, and logged once; it is recovered when its log can be read again."""
    runs = send_many(owner, assistant, 5)
    for run in runs:
        mark_running(run, started_at=timezone.now() - timedelta(minutes=1))
    bad, *others = runs
    valkey_client.set(run_log.log_key(bad.pk), "not a stream")
    sweeper, now = Sweeper(), timezone.now()
    sweep_for(sweeper, 60, start=now)
    assert [status(run) for run in others] == ["queued"] * 4
    assert status(bad) == "running"
    assert len([r for r in caplog.records if str(bad.pk) in r.getMessage()]) == 1
    valkey_client.delete(run_log.log_key(bad.pk))
    sweep_for(sweeper, 60, start=now + 62 * SECOND)
    assert status(bad) == "queued"


def test_refused_row_does_not_stop_the_sweep(owner, assistant, settings, valkey_client):
    settings.RUN_ATTEMPTS = 1
    runs = send_many(owner, assistant, 3)
    for run in runs:
        mark_running(run, started_at=timezone.now() - timedelta(minutes=1))
    waiting = send_many(owner, assistant, 1)[0]
    valkey_client.flushall()
    with refused("chat_run", f"NEW.id = '{runs[1].pk}'"):
        sweep_for(Sweeper(), 30)
    assert [status(run) for run in runs] == ["failed", "running", "failed"]
    assert queue.position(waiting)  # queued runs are processed all the same


def test_bad_job_does_not_stop_other_queued_runs(owner, assistant, valkey_client):
    runs = send_many(owner, assistant, 3)
    valkey_client.flushall()
    valkey_client.set(f"rq:job:{queue.job_id(runs[0].pk, 1)}", "not a hash")
    sweep_for(Sweeper(), 30)
    assert [queue.position(run) is not None for run in runs] == [False, True, True]


def test_bad_log_does_not_stop_other_ends(owner, assistant, valkey_client):
    runs = send_many(owner, assistant, 2)
    for run in runs:
        mark_running(run, started_at=timezone.now() - timedelta(minutes=1))
        valkey_client.set(lease_key(run.pk), 1)
        finish.end(
            run_id=run.pk,
            attempt=1,
            status=Run.Status.RUNNING,
            seq=5,
            outcome=finish.Outcome(status=Run.Status.DONE, text="Done"),
        )
    valkey_client.set(run_log.log_key(runs[0].pk), "not a stream")
    Sweeper().sweep(timezone.now() + 3 * SECOND)
    assert valkey_client.xlen(run_log.log_key(runs[1].pk)) == 1
