"""The worker as a process: signals, the drain, RQ's scheduler, the management command."""

from __future__ import annotations

import signal
import sys
import time

import pytest
from rq.command import send_stop_job_command
from rq.job import JobStatus, Retry
from rq.rate_limit import RateLimit, RateLimitRegistry

from chatproject.lib.rq_asyncio.worker import REPEAT_SECONDS
from tests.lib.rq_asyncio import jobs, workers
from tests.lib.rq_asyncio.jobs import wait_until
from tests.support.programs import Program


@pytest.fixture
def waiting(queue, folder):
    return queue.enqueue(jobs.waits, folder.path, "job")


@pytest.fixture
def process(waiting, start, folder):
    """A worker that runs one job, which waits for `folder.go()`; it has a minute to drain."""
    process = start()
    folder.wait_for("job started")
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_starts_the_drain(process, waiting, queue, folder, number):
    """The worker takes no new job, and its running ones may finish."""
    process.signal(number)
    process.wait_for("stopping within 60.0 s")
    new = queue.enqueue(jobs.returns)
    wait_until(lambda: queue.connection.hexists("rq:worker:subject", "shutdown_requested_date"))
    folder.go()
    workers.end(process)

    assert waiting.get_status() == JobStatus.FINISHED
    assert new.get_status() == JobStatus.QUEUED
    assert queue.job_ids == [new.id]
    workers.assert_records_are_clean(queue)


def test_second_signal_ends_the_drain(process, waiting, queue):
    process.signal(signal.SIGTERM)
    process.wait_for("stopping")
    time.sleep(REPEAT_SECONDS)
    process.signal(signal.SIGTERM)
    workers.end(process)
    assert queue.job_ids == [waiting.id]


def test_signals_at_once_are_one(process, waiting, folder):
    """Ctrl-C reaches a worker from the terminal and from its supervisor."""
    process.signal(signal.SIGINT)
    process.signal(signal.SIGTERM)
    process.wait_for("stopped taking jobs")
    folder.go()
    workers.end(process)
    assert waiting.get_status() == JobStatus.FINISHED


def test_drained_jobs_go_to_the_front(queue, folder):
    """Unless they end in order, or with an error of their own."""
    functions = (jobs.waits, jobs.plain_waits, jobs.settles, jobs.stumbles)
    coroutine, plain, settled, failed = (
        queue.enqueue(function, folder.path, function.__name__) for function in functions
    )
    waiting = queue.enqueue(jobs.returns)
    with workers.at_work(queue, concurrency=4):
        folder.wait_for(*(f"{function.__name__} started" for function in functions))

    assert "waits cancelled: drained" in folder.notes()
    assert set(queue.job_ids[:2]) == {coroutine.id, plain.id}
    assert queue.job_ids[2:] == [waiting.id]
    assert settled.return_value() == "settled"
    assert "clean-up failed" in workers.error_of(failed)
    for job in (coroutine, plain):
        job.refresh()
        assert (job.get_status(), job.started_at, job.worker_name) == ("queued", None, None)
    workers.assert_records_are_clean(queue)

    folder.go()
    workers.burst(queue)
    assert (coroutine.return_value(), plain.return_value()) == ("waits", "plain_waits")


def test_ignored_cancellation_does_not_keep_the_worker(start, queue, folder):
    job = queue.enqueue(jobs.ignores_cancellation, folder.path, "job")
    stopped = queue.enqueue(jobs.ignores_cancellation, folder.path, "stopped")
    queue.enqueue(jobs.leaves_callbacks, folder.path)
    process = start(drain=0, cleanup=0.2)
    folder.wait_for("job started", "stopped started")
    wait_until(lambda: queue.finished_job_registry.count == 1)
    send_stop_job_command(queue.connection, stopped.id)
    folder.wait_for("stopped ignored it")
    process.signal(signal.SIGTERM)
    assert process.wait() == 0

    assert "job ignored it" in folder.notes()
    log = process.text()
    assert f"Job {job.id} still runs after its cancellation" in log
    closed = log.index("INFO tests.lib.rq_asyncio.jobs: closed")
    assert log.index(f"job {job.id} was put back") < closed
    assert queue.job_ids == [job.id]
    assert stopped.get_status() == JobStatus.STOPPED
    workers.assert_records_are_clean(queue)


def test_job_put_back_keeps_its_slot(queue, connection, folder, caplog):
    limit = RateLimit(key="user-1", concurrency=1)
    with workers.running(queue, folder, rate_limit=limit) as (job, _):
        waiting = queue.enqueue(jobs.returns, rate_limit=limit)
    assert "Traceback" not in caplog.text
    registry = RateLimitRegistry("user-1", connection)
    assert registry.get_allowed_job_ids() == queue.job_ids == [job.id]
    assert registry.get_rate_limited_job_ids() == [waiting.id]
    folder.go()
    workers.burst(queue)
    assert queue.finished_job_registry.count == 2
    assert registry.get_allowed_job_ids() == []


def test_canceled_or_deleted_job_stays_so(queue, connection, folder, caplog):
    """It is not put back after the drain."""
    limit = RateLimit(key="user-1", concurrency=2)
    canceled, deleted, waiting = (
        queue.enqueue(jobs.waits, folder.path, f"job {n}", rate_limit=limit) for n in range(3)
    )
    with workers.at_work(queue):
        folder.wait_for("job 0 started", "job 1 started")
        canceled.cancel()
        deleted.delete()
    ours = [one for one in caplog.records if one.name.startswith("chatproject.lib.rq_asyncio")]
    assert [one for one in ours if one.exc_info] == []
    assert canceled.get_status() == JobStatus.CANCELED
    assert not connection.exists(deleted.key)
    assert queue.job_ids == [waiting.id]
    assert RateLimitRegistry("user-1", connection).get_allowed_job_ids() == [waiting.id]
    workers.assert_records_are_clean(queue)


def test_scheduler_retries_after_the_interval(start, queue, folder):
    job = queue.enqueue(jobs.fails_until, folder.path, 2, retry=Retry(max=1, interval=1))
    process = start("--with-scheduler")
    wait_until(lambda: job.get_status() == JobStatus.FINISHED)
    assert queue.connection.keys("rq:scheduler*")
    # Its process is a child of the worker, and the signal is meant for the worker only.
    process.signal(signal.SIGTERM)
    assert process.wait() == 0
    assert queue.connection.keys("rq:scheduler*") == []


def test_management_command_runs_this_worker(queue):
    names, fails = queue.enqueue(jobs.names_itself), queue.enqueue(jobs.plain_fails)
    command = "manage.py rqworker chat --burst --serializer rq.serializers.JSONSerializer"
    with Program([sys.executable, *command.split()], cwd=workers.PROJECT) as process:
        assert process.wait() == 0
    assert names.return_value() == [names.id, "MainThread"]
    assert fails.get_status() == JobStatus.FAILED
    workers.assert_records_are_clean(queue)
