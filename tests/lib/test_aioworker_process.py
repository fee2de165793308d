"""The asyncio worker as a process: signals, the drain, RQ's scheduler, the management command."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from rq import Queue
from rq.command import send_stop_job_command
from rq.job import JobStatus, Retry
from rq.rate_limit import RateLimit, RateLimitRegistry
from rq.serializers import JSONSerializer
from rq.worker import Worker

from chatproject.lib.aioworker import REPEAT_SECONDS
from tests.lib import aioworker_jobs as jobs
from tests.lib.aioworker_guest import GuestWorker
from tests.lib.aioworker_jobs import PATIENCE, Folder, wait_until

PROJECT = Path(__file__).resolve().parents[2]


class Process:
    """A worker in a process of its own; ends with the test."""

    def __init__(self, arguments: list[str], log: Path) -> None:
        self._log = log
        with log.open("wb") as output:
            self._popen = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=PROJECT,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def log(self) -> str:
        return self._log.read_text()

    def wait_for_log(self, text: str) -> None:
        wait_until(lambda: text in self.log() or self._popen.poll() is not None)
        assert text in self.log()

    def send(self, number: signal.Signals) -> None:
        self._popen.send_signal(number)

    def end(self) -> None:
        """Wait for its end, which must come by itself and in order."""
        assert self._popen.wait(PATIENCE) == 0, self.log()
        assert "Traceback" not in self.log()

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        self.send(number)
        self.end()

    def kill(self) -> None:
        self._popen.kill()
        self._popen.wait()


@pytest.fixture
def connection(valkey_url: str) -> Iterator[Redis]:
    with Redis.from_url(valkey_url) as client:
        yield client


@pytest.fixture
def queue(connection: Redis) -> Queue:
    return Queue("chat", connection=connection, serializer=JSONSerializer)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


@pytest.fixture
def start(valkey_url: str, tmp_path: Path) -> Iterator[Any]:
    processes: list[Process] = []

    def start_worker(*arguments: str, drain_seconds: float = 60) -> Process:
        command = ["-m", "tests.lib.aioworker_jobs", valkey_url, "chat"]
        command += ["--drain-seconds", str(drain_seconds), *arguments]
        process = Process(command, tmp_path / f"log-{len(processes)}")
        processes.append(process)
        return process

    yield start_worker
    for process in processes:
        process.kill()


def burst(queue: Queue) -> None:
    GuestWorker([queue], connection=queue.connection, serializer=JSONSerializer).work(burst=True)


def assert_books_are_clean(queue: Queue) -> None:
    connection = queue.connection
    assert queue.started_job_registry.get_job_ids(cleanup=False) == []
    assert queue.intermediate_queue.get_job_ids() == []
    assert connection.keys("rq:execution*") == []
    assert connection.keys("rq:worker:*:executions") == []
    assert Worker.all(connection) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_on_a_signal_it_takes_no_new_job_and_running_ones_may_finish(start, queue, folder, number):
    job = queue.enqueue(jobs.waits, folder.path, "job")
    worker = start()
    folder.wait_for("job started")

    worker.send(number)
    worker.wait_for_log("stopping in 60.0 s at most")
    new = queue.enqueue(jobs.returns)
    wait_until(lambda: queue.connection.hexists("rq:worker:subject", "shutdown_requested_date"))
    folder.go()
    worker.end()

    assert job.get_status() == JobStatus.FINISHED
    assert new.get_status() == JobStatus.QUEUED
    assert queue.job_ids == [new.id]
    assert_books_are_clean(queue)


def test_what_runs_after_the_drain_time_goes_back_to_the_front(start, queue, folder):
    coroutine = queue.enqueue(jobs.waits, folder.path, "coroutine")
    plain = queue.enqueue(jobs.plain_waits, folder.path, "plain")
    settled = queue.enqueue(jobs.settles, folder.path, "settled")
    failed = queue.enqueue(jobs.stumbles, folder.path, "failed")
    worker = start(drain_seconds=0)
    folder.wait_for(*(f"{name} started" for name in ("coroutine", "plain", "settled", "failed")))
    worker.send(signal.SIGTERM)
    worker.wait_for_log("stopping")
    waiting = queue.enqueue(jobs.returns)
    worker._popen.wait(PATIENCE)

    assert "coroutine cancelled: drained" in folder.notes()
    assert set(queue.job_ids[:2]) == {coroutine.id, plain.id}
    assert queue.job_ids[2:] == [waiting.id]
    assert settled.return_value() == "settled"
    assert "clean-up failed" in str(failed.latest_result().exc_string)
    for job in (coroutine, plain):
        job.refresh()
        assert (job.get_status(), job.started_at, job.worker_name) == ("queued", None, None)
    assert_books_are_clean(queue)

    folder.go()
    burst(queue)
    assert (coroutine.return_value(), plain.return_value()) == ("coroutine", "plain")


def test_a_second_signal_ends_the_drain(start, queue, folder):
    job = queue.enqueue(jobs.waits, folder.path, "job")
    worker = start()
    folder.wait_for("job started")
    worker.send(signal.SIGTERM)
    worker.wait_for_log("stopping")
    time.sleep(REPEAT_SECONDS)
    worker.stop()
    assert queue.job_ids == [job.id]


def test_the_same_signal_twice_at_once_is_one(start, queue, folder):
    """Ctrl-C reaches a worker from the terminal and from its supervisor."""
    job = queue.enqueue(jobs.waits, folder.path, "job")
    worker = start()
    folder.wait_for("job started")
    worker.send(signal.SIGINT)
    worker.send(signal.SIGTERM)
    worker.wait_for_log("takes no more jobs")
    folder.go()
    worker.end()
    assert job.get_status() == JobStatus.FINISHED


def test_jobs_that_ignore_their_cancellation_do_not_keep_it(start, queue, connection, folder):
    job = queue.enqueue(jobs.ignores_cancellation, folder.path, "job")
    stopped = queue.enqueue(jobs.ignores_cancellation, folder.path, "stopped")
    queue.enqueue(jobs.leaves_a_callback, folder.path)
    worker = start("--cleanup-seconds", "0.2", drain_seconds=0)
    folder.wait_for("job started", "stopped started")
    wait_until(lambda: queue.finished_job_registry.count == 1)
    send_stop_job_command(connection, stopped.id)
    folder.wait_for("stopped ignored it")
    worker.send(signal.SIGTERM)
    worker._popen.wait(PATIENCE)

    assert "job ignored it" in folder.notes()
    log = worker.log()
    assert f"Job {job.id} does not end though it was cancelled" in log
    assert log.index(f"job {job.id} was put back") < log.index(
        "INFO tests.lib.aioworker_jobs: closed"
    )
    assert queue.job_ids == [job.id]
    assert stopped.get_status() == JobStatus.STOPPED
    assert_books_are_clean(queue)


def test_a_job_that_is_put_back_keeps_its_slot(start, queue, connection, folder):
    limit = RateLimit(key="user-1", concurrency=1)
    job = queue.enqueue(jobs.waits, folder.path, "job", rate_limit=limit)
    waiting = queue.enqueue(jobs.returns, rate_limit=limit)
    worker = start(drain_seconds=0)
    folder.wait_for("job started")
    worker.stop()

    registry = RateLimitRegistry("user-1", connection)
    assert registry.get_allowed_job_ids() == queue.job_ids == [job.id]
    assert registry.get_rate_limited_job_ids() == [waiting.id]
    folder.go()
    burst(queue)
    assert queue.finished_job_registry.count == 2
    assert registry.get_allowed_job_ids() == []


def test_a_job_canceled_or_deleted_while_it_ran_is_not_put_back(start, queue, connection, folder):
    limit = RateLimit(key="user-1", concurrency=2)
    canceled = queue.enqueue(jobs.waits, folder.path, "canceled", rate_limit=limit)
    deleted = queue.enqueue(jobs.waits, folder.path, "deleted", rate_limit=limit)
    waiting = queue.enqueue(jobs.waits, folder.path, "waiting", rate_limit=limit)
    worker = start(drain_seconds=0)
    folder.wait_for("canceled started", "deleted started")
    canceled.cancel()
    deleted.delete()
    worker.stop()

    assert canceled.get_status() == JobStatus.CANCELED
    assert not connection.exists(deleted.key)
    assert queue.job_ids == [waiting.id]
    assert RateLimitRegistry("user-1", connection).get_allowed_job_ids() == [waiting.id]
    assert_books_are_clean(queue)


def test_with_the_scheduler_a_retry_comes_after_its_interval(start, queue, folder):
    job = queue.enqueue(jobs.fails_until, folder.path, 2, retry=Retry(max=1, interval=1))
    worker = start("--with-scheduler")
    wait_until(lambda: job.get_status() == JobStatus.FINISHED)
    assert queue.connection.keys("rq:scheduler*")
    # Its process is a child of the worker, and the signal is meant for the worker only.
    worker.send(signal.SIGTERM)
    worker._popen.wait(PATIENCE)
    assert queue.connection.keys("rq:scheduler*") == []


def test_the_management_command_uses_it(queue, folder, tmp_path):
    names = queue.enqueue(jobs.names_itself)
    fails = queue.enqueue(jobs.plain_fails)
    command = "manage.py rqworker chat --burst --serializer rq.serializers.JSONSerializer"
    worker = Process(command.split(), tmp_path / "log")
    assert worker._popen.wait(PATIENCE) == 0, worker.log()
    assert names.return_value() == [names.id, "MainThread"]
    assert fails.get_status() == JobStatus.FAILED
    assert_books_are_clean(queue)
