"""The worker's own life: its start and end, the jobs it takes, commands from outside."""

from __future__ import annotations

import json
import sys

import pytest
from rq import Callback, command
from rq.job import JobStatus, Retry
from rq.rate_limit import RateLimit
from rq.suspension import resume, suspend
from rq.worker import DequeueStrategy, Worker

from chatproject.lib.rq_asyncio import AsyncWorker, on_start, worker
from chatproject.lib.rq_asyncio.memory import resident_megabytes
from tests.lib.rq_asyncio import jobs, workers
from tests.lib.rq_asyncio.jobs import PATIENCE, wait_until


def test_worker_imports_ahead_of_its_jobs(queue, settings, tmp_path, monkeypatch):
    (tmp_path / "needed_by_jobs.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    settings.WORKER_IMPORTS = ["needed_by_jobs"]
    assert workers.burst(queue) is False  # there was no job
    assert sys.modules.pop("needed_by_jobs", None) is not None


def test_missing_import_ends_the_worker(queue, settings):
    settings.WORKER_IMPORTS = ["no_such_module"]
    with pytest.raises(ModuleNotFoundError):
        workers.burst(queue)


def test_taken_name_is_refused(queue):
    with workers.at_work(queue, name="one"), pytest.raises(ValueError, match="active worker named"):
        workers.make_worker(queue, name="one").work()


def test_settings_are_the_defaults(queue, settings):
    settings.WORKER_CONCURRENCY, settings.WORKER_DRAIN_SECONDS = 7, 3
    settings.WORKER_MAX_MB = 900
    ours = workers.make_worker(queue)
    assert (ours.concurrency, ours.drain_seconds, ours.max_megabytes) == (7, 3, 900)


def test_hooks_run_around_all_jobs(queue, folder, caplog):
    """Hooks of on_start before the first, of on_shutdown after the last; each may fail."""

    async def fail() -> None:
        jobs.note(folder.path, "opened")
        raise OSError("cannot be opened")

    on_start(fail)
    queue.enqueue(jobs.leaves_callbacks, folder.path)
    with workers.running(queue, folder):
        pass
    assert folder.notes() == ["opened", "job started", "job cancelled: drained", "closed"]
    assert "cannot be opened" in caplog.text
    assert "as it should" in caplog.text


@pytest.mark.parametrize(
    ("options", "work_options", "sleeps", "done"),
    [
        pytest.param({}, {"max_jobs": 2}, [0, 0.1, 0.2], 2, id="after a number of jobs"),
        pytest.param({}, {"max_idle_time": 1}, [1.1], 1, id="idle for a time"),
        pytest.param({"max_megabytes": 1}, {}, [0.5], 1, id="grown too large"),
    ],
)
def test_worker_ends_after_its_last_job(queue, options, work_options, sleeps, done):
    for seconds in sleeps:
        queue.enqueue(jobs.sleeps, seconds)
    assert resident_megabytes() > 1
    assert workers.work(workers.make_worker(queue, **options), **work_options) is True
    assert queue.finished_job_registry.count == done
    assert queue.count == len(sleeps) - done


# The jobs it takes


def test_worker_takes_no_more_than_its_concurrency(queue, folder):
    for number in range(5):
        queue.enqueue(jobs.waits, folder.path, f"job {number}")
    with workers.at_work(queue, concurrency=2):
        folder.wait_for("job 0 started", "job 1 started")
        assert queue.count == 3
        folder.go()
        wait_until(lambda: queue.finished_job_registry.count == 5)
    workers.assert_records_are_clean(queue)


@pytest.mark.parametrize(("strategy", "order"), [("default", "aabb"), ("round_robin", "abab")])
def test_queues_are_served_by_strategy(connection, folder, strategy, order):
    queues = [workers.make_queue(connection, name) for name in "ab"]
    for queue in queues:
        for _ in range(2):
            queue.enqueue(jobs.note, folder.path, queue.name)
    ours = workers.make_worker(*queues, concurrency=1)
    workers.work(ours, burst=True, dequeue_strategy=DequeueStrategy(strategy))
    assert folder.notes() == list(order)
    for queue in queues:
        assert queue.finished_job_registry.count == 2
        workers.assert_records_are_clean(queue)


def test_unreadable_job_does_not_end_the_worker(queue):
    broken = queue.enqueue(jobs.returns)
    queue.connection.hset(broken.key, "status", "no such status")
    good = queue.enqueue(jobs.returns, "fine")
    with workers.at_work(queue):
        wait_until(lambda: good.get_status() == JobStatus.FINISHED)


@pytest.mark.parametrize("in_burst", [True, False])
def test_dependent_left_behind_is_enqueued_soon(queue, monkeypatch, in_burst):
    dependent = queue.enqueue(jobs.returns)
    assert queue.pop_job_id() == dependent.id
    queue.enqueue(jobs.leaves_behind, dependent.id)
    if in_burst:
        monkeypatch.setattr(worker, "CHECK_SECONDS", 10)
        workers.burst(queue)
        assert dependent.is_finished
    else:
        with workers.at_work(queue):
            wait_until(lambda: dependent.is_finished)


def test_suspended_worker_takes_no_job(queue, connection, folder):
    queue.enqueue(jobs.waits, folder.path, "running")
    # Not the quick worker: it is to wait for a job while it is suspended.
    with workers.at_work(queue, worker_class=AsyncWorker) as ours:
        folder.wait_for("running started")
        suspend(connection)
        wait_until(lambda: ours.bookkeeping.is_suspended)
        job = queue.enqueue(jobs.returns)
        folder.go()
        wait_until(lambda: connection.hget(ours.key, "state") == b"suspended")
        assert job.get_status() == JobStatus.QUEUED
        resume(connection)
        wait_until(lambda: job.is_finished)


def test_suspended_worker_in_burst_mode_quits(queue, connection):
    suspend(connection)
    job = queue.enqueue(jobs.returns)
    assert workers.burst(queue) is False
    assert job.get_status() == JobStatus.QUEUED


# Commands


@pytest.mark.parametrize(
    ("function", "noted"),
    [
        (jobs.waits, "job cancelled: stopped"),
        (jobs.stumbles, "job started"),
        (jobs.plain_waits, "job started"),
    ],
)
def test_stop_command_stops_that_job_only(queue, connection, folder, function, noted):
    other = queue.enqueue(jobs.waits, folder.path, "other")
    with workers.running(queue, folder, function, on_stopped=Callback(jobs.on_stopped)) as (job, _):
        folder.wait_for("other started")
        command.send_stop_job_command(connection, job.id)
        wait_until(lambda: job.get_status() == JobStatus.STOPPED)
        folder.go()
        wait_until(lambda: other.is_finished)
    assert noted in folder.notes()
    assert queue.failed_job_registry.get_job_ids() == [job.id]
    assert workers.error_of(job) == "Job stopped by user."
    assert connection.lrange("callbacks", 0, -1) == [f"stopped {job.id}".encode()]
    workers.assert_records_are_clean(queue)


def test_stopped_job_is_not_retried(queue, connection, folder):
    """And gives its slot back."""
    limit = RateLimit(key="user-1", concurrency=1)
    with workers.running(queue, folder, retry=Retry(max=3), rate_limit=limit) as (job, _):
        waiting = queue.enqueue(jobs.returns, rate_limit=limit)
        command.send_stop_job_command(connection, job.id)
        wait_until(lambda: waiting.is_finished)
    assert job.get_status() == JobStatus.STOPPED


def test_many_jobs_are_stopped_at_once(queue, connection, folder):
    stopped = [queue.enqueue(jobs.waits, folder.path, f"job {n}") for n in range(20)]
    with workers.at_work(queue):
        folder.wait_for(*(f"job {n} started" for n in range(20)))
        for job in stopped:
            command.send_stop_job_command(connection, job.id)
        wait_until(lambda: queue.failed_job_registry.count == 20)
    assert {job.get_status() for job in stopped} == {JobStatus.STOPPED}


def test_stopped_job_may_still_finish(queue, connection, folder):
    with workers.running(queue, folder, jobs.settles) as (job, _):
        command.send_stop_job_command(connection, job.id)
        wait_until(lambda: job.is_finished)
    assert job.return_value() == "settled"


def test_one_execution_can_be_stopped(queue, connection, folder):
    with workers.running(queue, folder) as (job, ours):
        (execution,) = job.get_executions()
        command.send_command(
            connection, ours.name, "stop-execution", job_id=job.id, execution_id="x"
        )
        command.send_stop_execution_command(connection, job.id, execution.id)
        wait_until(lambda: job.get_status() == JobStatus.STOPPED)


def test_unknown_commands_are_ignored(queue, connection, folder):
    with workers.running(queue, folder) as (job, ours):
        for rubbish in (b"\xff", "not JSON", "[]", "{}", json.dumps({"command": "dance"})):
            connection.publish(ours.pubsub_channel_name, rubbish)
        command.send_kill_horse_command(connection, ours.name)
        command.send_command(connection, ours.name, "stop-job", job_id="of-another-worker")
        command.send_stop_job_command(connection, job.id)
        wait_until(lambda: job.get_status() == JobStatus.STOPPED)


def test_shutdown_command_starts_the_drain(queue, connection, folder):
    job = queue.enqueue(jobs.waits, folder.path, "job")
    with workers.at_work(queue, drain_seconds=PATIENCE) as ours:
        folder.wait_for("job started")
        command.send_shutdown_command(connection, ours.name)
        wait_until(lambda: ours.shutdown_requested_date)
        folder.go()
        wait_until(lambda: job.is_finished)
        wait_until(lambda: Worker.all(connection) == [])
