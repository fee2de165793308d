"""The worker while Redis is unreachable and comes back, and when single answers are lost."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from redis import Connection, ConnectionPool, Redis
from rq import Queue
from rq.command import send_stop_job_command
from rq.job import Dependency, Job, JobStatus, Retry
from rq.rate_limit import RateLimit, RateLimitRegistry
from rq.worker import Worker

from chatproject.lib.rq_asyncio import AsyncWorker
from chatproject.local.servers import ValkeyServer
from tests.lib.rq_asyncio import jobs
from tests.lib.rq_asyncio.jobs import PATIENCE, Folder, wait_until
from tests.lib.rq_asyncio.workers import assert_records_are_clean, at_work, end, make_queue, running


@pytest.fixture
def valkey(server_folder: Path) -> Iterator[ValkeyServer]:
    """Keeps everything on disk, so that it has its data after a crash."""
    settings = {"appendonly": "yes", "appendfsync": "always"}
    server = ValkeyServer(server_folder / "valkey", settings=settings)
    server.start()
    yield server
    server.stop()


def counts(queue: Queue) -> tuple[int, int]:
    """Successful and failed executions of the only worker."""
    (worker,) = Worker.all(queue=queue)
    return worker.successful_job_count, worker.failed_job_count


def has_ended(worker: AsyncWorker, job: Job) -> bool:
    return job.get_status() in ("finished", "failed") and not worker.runs


def test_jobs_ended_in_an_outage_are_recorded(valkey, open_queue, folder):
    queue = open_queue(valkey.url)
    limit = RateLimit(key="user-1", concurrency=1)
    good = queue.enqueue(jobs.waits, folder.path, "good", rate_limit=limit)
    bad = queue.enqueue(jobs.waits_then_fails, folder.path, "bad")
    retry = Retry(max=1, interval=60)
    again = queue.enqueue(jobs.waits_then_fails, folder.path, "again", retry=retry)
    plain = queue.enqueue(jobs.plain_waits, folder.path, "plain")
    after = queue.enqueue(jobs.returns, "after", depends_on=good)
    limited = queue.enqueue(jobs.returns, "limited", rate_limit=limit)

    with at_work(queue) as worker:
        folder.wait_for(*(f"{name} started" for name in ("good", "bad", "again", "plain")))
        valkey.kill()
        folder.go()
        folder.wait_for("good went on", "bad went on", "again went on")
        wait_until(lambda: worker.redis_was_unreachable)
        assert len(worker.runs) == 4
        valkey.start()

        wait_until(lambda: after.is_finished and limited.is_finished)
        wait_until(lambda: not worker.runs)
        assert (good.return_value(), plain.return_value()) == ("good", "plain")
        assert bad.get_status() == JobStatus.FAILED
        assert again.get_status() == JobStatus.SCHEDULED
        assert counts(queue) == (4, 2)
        new = queue.enqueue(jobs.waits, folder.path, "new")
        wait_until(lambda: new.is_finished)
    assert RateLimitRegistry("user-1", queue.connection).get_allowed_job_ids() == []
    assert_records_are_clean(queue)


def test_empty_redis_gets_everything_again(own_valkey, open_queue, folder):
    """One that comes back without its data."""
    queue = open_queue(own_valkey.url)
    other = Folder(Path(folder.path) / "other")
    Path(other.path).mkdir()
    plain = queue.enqueue(jobs.plain_waits, other.path, "plain")

    with running(queue, folder) as (job, worker):
        other.wait_for("plain started")
        own_valkey.kill()
        folder.go()
        folder.wait_for("job went on")
        wait_until(lambda: worker.redis_was_unreachable)
        own_valkey.start()

        wait_until(lambda: queue.connection.hget(job.key, "status") == b"finished")
        assert job.return_value() == "job"
        wait_until(lambda: queue.started_job_registry.get_job_ids() == [plain.id])
        wait_until(lambda: [seen.name for seen in Worker.all(queue=queue)] == [worker.name])
        new = queue.enqueue(jobs.returns)
        wait_until(lambda: new.is_finished)
        other.go()
        wait_until(lambda: plain.is_finished)


def test_commands_arrive_after_an_outage(own_valkey, open_queue, folder):
    queue = open_queue(own_valkey.url)
    with at_work(queue) as worker:
        own_valkey.kill()
        wait_until(lambda: worker.redis_was_unreachable)
        own_valkey.start()
        job = queue.enqueue(jobs.waits, folder.path, "job")
        folder.wait_for("job started")
        wait_until(lambda: queue.connection.pubsub_numsub(worker.pubsub_channel_name)[0][1] == 1)
        send_stop_job_command(queue.connection, job.id)
        wait_until(lambda: job.get_status() == JobStatus.STOPPED)
        wait_until(lambda: not worker.redis_was_unreachable)


def test_worker_ends_without_redis(own_valkey, open_queue, folder, start):
    """And logs which job is not recorded."""
    job = open_queue(own_valkey.url).enqueue(jobs.waits, folder.path, "job")
    process = start(url=own_valkey.url, drain=0, cleanup=0.2)
    folder.wait_for("job started")
    own_valkey.kill()
    process.wait_for("Redis is unreachable")
    process.signal(signal.SIGTERM)
    end(process)
    assert f"Job {job.id} has ended, but Redis has no record of it" in process.text()
    assert "could not deregister" in process.text()


def test_worker_waits_for_redis_at_start(own_valkey, open_queue, start):
    own_valkey.kill()
    process = start(url=own_valkey.url)
    process.wait_for("waits for Redis")
    time.sleep(1)  # two more looks
    own_valkey.start()
    job = open_queue(own_valkey.url).enqueue(jobs.returns, "x")
    wait_until(lambda: job.is_finished)
    process.signal(signal.SIGTERM)
    end(process)
    assert process.text().count("waits for Redis") == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_worker_can_be_stopped_while_it_waits(own_valkey, start, number):
    own_valkey.kill()
    process = start(url=own_valkey.url)
    process.wait_for("waits for Redis")
    process.signal(number)
    end(process)


def test_worker_can_be_stopped_while_redis_is_silent(start):
    """A server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        process = start(url=f"redis://127.0.0.1:{server.getsockname()[1]}/0")
        process.wait_for("waits for Redis")
        process.signal(signal.SIGTERM)
        end(process)


def test_scheduler_runs_again_after_an_outage(valkey, open_queue, folder, start):
    queue = open_queue(valkey.url)
    process = start("--with-scheduler", url=valkey.url)
    wait_until(lambda: queue.connection.keys("rq:scheduler:*"))
    valkey.kill()
    process.wait_for("raised an exception")
    valkey.start()
    queue.connection.delete(*queue.connection.keys("rq:scheduler*"))
    job = queue.enqueue(jobs.fails_until, folder.path, 2, retry=Retry(max=1, interval=1))
    wait_until(lambda: job.is_finished)
    # A signal to that process must not be taken for one to the worker, whose loop it inherits.
    (key,) = queue.connection.keys("rq:scheduler:*")
    wait_until(lambda: queue.connection.hexists(key, "pid"))
    os.kill(int(queue.connection.hget(key, "pid")), signal.SIGTERM)
    wait_until(lambda: not queue.connection.keys("rq:scheduler:*"))
    job = queue.enqueue(jobs.returns)
    wait_until(lambda: job.is_finished)
    process.signal(signal.SIGTERM)
    assert process.wait() == 0


class Cuts:
    """Cuts the connections of a queue at one chosen transaction, before it or before its answer."""

    queue: Queue

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._marker: bytes | None = None
        self.has_cut = threading.Event()

    def at(self, marker: bytes, *, after: bool, skip: int = 0, end: bytes = b"EXEC") -> None:
        """Cut at a coming transaction with the marker; after it, only the answer is lost."""
        self._marker, self._after, self._skip, self._end = marker, after, skip, end

    def none(self) -> None:
        """Let all coming transactions through."""
        with self._lock:
            self._marker = None

    def send(self, connection: Any, command: list[bytes], send: Callable[..., None]) -> None:
        if not self._is_due(b"".join(command)):
            send(command)
            return
        if self._after:
            send(command)
        connection._sock.shutdown(socket.SHUT_WR)
        while connection._sock.recv(65536):
            pass  # until Redis has executed it, if it was sent, and closed the connection
        self.has_cut.set()

    def _is_due(self, command: bytes) -> bool:
        with self._lock:
            if self._marker is None or self._marker not in command or self._end not in command:
                return False
            self._skip -= 1
            if self._skip < 0:
                self._marker = None
            return self._marker is None


@pytest.fixture
def cuts(valkey_url: str) -> Iterator[Cuts]:
    cuts = Cuts()

    class CutConnection(Connection):
        def send_packed_command(self, command: Any, check_health: bool = True) -> None:
            cuts.send(self, command, super().send_packed_command)

    pool = ConnectionPool.from_url(valkey_url, connection_class=CutConnection)
    with Redis.from_pool(pool) as client:
        cuts.queue = make_queue(client)
        yield cuts


TRANSACTIONS = {
    "the execution's start": b"ZADD\r\n$11\r\nrq:wip:chat",
    "the job's start": b"rq:queue:chat:intermediate",
    "the end": b"ZREM\r\n$11\r\nrq:wip:chat",
}


@pytest.mark.parametrize("after", [False, True], ids=["command lost", "answer lost"])
@pytest.mark.parametrize("transaction", TRANSACTIONS)
def test_lost_connection_doubles_nothing(queue, cuts, folder, transaction, after):
    cases = (  # a job; how many successes, failures and results come of it
        ((jobs.returns,), None, 1, 0, 1),
        ((jobs.fails,), None, 0, 1, 1),
        ((jobs.fails_until, folder.path, 2), Retry(max=1), 1, 1, 1),
        ((jobs.returns_retry, folder.path, 4), None, 1, 1, 2),
    )
    with at_work(cuts.queue) as worker:
        for call, retry, successes, failures, results in cases:
            before = counts(queue)
            cuts.at(TRANSACTIONS[transaction], after=after)
            job = queue.enqueue(*call, retry=retry)
            assert cuts.has_cut.wait(PATIENCE)
            cuts.has_cut.clear()
            wait_until(partial(has_ended, worker, job))
            assert job.get_status() == ("failed" if not successes else "finished")
            assert counts(queue) == (before[0] + successes, before[1] + failures)
            assert len(job.results()) == results
    assert folder.notes() == ["attempt"] * 4
    assert_records_are_clean(queue)


@pytest.mark.parametrize("function", [jobs.returns, jobs.fails, jobs.returns_endless_retry])
def test_slot_and_dependents_survive_a_lost_answer(queue, cuts, function):
    limit = RateLimit(key="user-1", concurrency=1)
    cuts.at(TRANSACTIONS["the end"], after=True, skip=2 * (function is jobs.returns_endless_retry))
    first = queue.enqueue(function, rate_limit=limit)
    after = Dependency(jobs=[first], allow_failure=True)
    dependent = queue.enqueue(jobs.returns, depends_on=after)
    waiting = queue.enqueue(jobs.returns, rate_limit=limit)
    with at_work(cuts.queue):
        wait_until(lambda: waiting.is_finished and dependent.is_finished)
    assert cuts.has_cut.is_set()


@pytest.mark.parametrize("after", [False, True], ids=["command lost", "answer lost"])
def test_slot_comes_free_despite_a_lost_release(queue, cuts, after):
    limit = RateLimit(key="user-1", concurrency=1)
    cuts.at(b"EVALSHA", after=after, end=b"")
    queue.enqueue(jobs.fails, rate_limit=limit)
    waiting = queue.enqueue(jobs.returns, rate_limit=limit)
    with at_work(cuts.queue):
        wait_until(lambda: waiting.is_finished)
    assert cuts.has_cut.is_set()


class Flushes:
    """Empties Redis just before or after one chosen command of a worker."""

    def __init__(self, flush: Callable[[], object]) -> None:
        self._flush = flush
        self._lock = threading.Lock()
        self._left: int | None = None
        self.has_flushed = threading.Event()

    def at(self, number: int) -> None:
        """Empty Redis at the command of this number, from the next job's dequeue on."""
        self._left = number
        self.has_flushed.clear()

    def send(self, send: Callable[[], None]) -> None:
        with self._lock:
            if self._left is not None:
                self._left -= 1
            is_due = self._left == -1
            if is_due:
                self._left = None
        if is_due:
            self._flush()
            self.has_flushed.set()
        send()


@pytest.mark.parametrize("function", [jobs.returns, jobs.fails, jobs.adds])
def test_flush_at_any_command_fails_no_job(valkey_url, queue, function, caplog):
    """A flush may lose a job, but never makes a failure of a success, or harms the worker."""
    limit = RateLimit(key="user-1", concurrency=1)
    flushes = Flushes(queue.connection.flushall)

    class FlushedConnection(Connection):
        def send_packed_command(self, command: Any, check_health: bool = True) -> None:
            flushes.send(lambda: super(FlushedConnection, self).send_packed_command(command))

    arguments = (1, 2) if function is jobs.adds else ()
    pool = ConnectionPool.from_url(valkey_url, connection_class=FlushedConnection)
    with Redis.from_pool(pool) as client, at_work(make_queue(client)) as worker:
        for number in range(40):
            job = queue.enqueue(function, *arguments, rate_limit=limit)
            flushes.at(number)
            assert flushes.has_flushed.wait(PATIENCE)
            wait_until(lambda: not worker.runs)
            is_failed = queue.connection.hget(job.key, "status") == b"failed"
            assert not is_failed or function is jobs.fails, number
            queue.connection.flushall()
            after = queue.enqueue(jobs.returns)
            wait_until(partial(has_ended, worker, after))
    # The worker also runs announcements that earlier tests of the process have left, without their rows.
    records = [record for record in caplog.records if record.name != "django.dispatch"]
    unexpected = [r.getMessage() for r in records if r.levelname in ("ERROR", "CRITICAL")]
    assert [text for text in unexpected if "failed" not in text or function is not jobs.fails] == []


def test_outage_while_putting_back_doubles_none(queue, cuts, folder):
    with running(cuts.queue, folder) as (job, _):
        cuts.at(TRANSACTIONS["the end"], after=True)
    assert cuts.has_cut.is_set()
    assert queue.job_ids == [job.id]
    assert_records_are_clean(queue)


def test_repeated_cuts_lose_no_job(queue, cuts):
    """And double none."""
    ids = {queue.enqueue(jobs.returns, number).id for number in range(50)}
    count = 0
    with at_work(cuts.queue):
        while queue.finished_job_registry.count < 50:
            cuts.at(b"EXEC", after=count % 2 == 1, skip=count % 5)
            count += cuts.has_cut.wait(jobs.POLL)
            cuts.has_cut.clear()
            time.sleep(2 * jobs.POLL)
        cuts.none()  # the worker deregisters in a single attempt
        assert counts(queue) == (50, 0)
    assert count > 1
    assert set(queue.finished_job_registry.get_job_ids()) == ids
    assert_records_are_clean(queue)
