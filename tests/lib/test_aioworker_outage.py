"""The asyncio worker while Redis goes away and comes back, and when single answers are lost."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from redis import Redis
from rq import Queue
from rq.command import send_stop_job_command
from rq.job import Job, JobStatus, Retry
from rq.rate_limit import RateLimit, RateLimitRegistry
from rq.serializers import JSONSerializer
from rq.worker import Worker

from chatproject.lib import aioworker
from chatproject.lib.aioworker import AsyncWorker
from chatproject.local.servers import ValkeyServer
from tests.lib import aioworker_jobs as jobs
from tests.lib.aioworker_jobs import PATIENCE, Folder, wait_until
from tests.lib.test_aioworker import assert_books_are_clean, at_work
from tests.lib.test_aioworker_process import Process


@pytest.fixture(autouse=True)
def quick_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aioworker, "CHECK_SECONDS", 0.05)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


@pytest.fixture
def valkey(server_folder: Path) -> Iterator[ValkeyServer]:
    """Keeps everything on disk, so that it knows its data after a crash."""
    settings = {"appendonly": "yes", "appendfsync": "always"}
    server = ValkeyServer(server_folder / "valkey", settings=settings)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def open_queue() -> Iterator[Callable[[str], Queue]]:
    clients = []

    def open_queue_at(url: str) -> Queue:
        client = Redis.from_url(url)
        clients.append(client)
        return Queue("chat", connection=client, serializer=JSONSerializer)

    yield open_queue_at
    for client in clients:
        client.close()


def counts(queue: Queue) -> tuple[int, int]:
    """Successful and failed executions of the only worker."""
    (key,) = (key for key in queue.connection.keys("rq:worker:*") if key.count(b":") == 2)
    connection: Any = queue.connection
    values = connection.hmget(key, "successful_job_count", "failed_job_count")
    return int(values[0] or 0), int(values[1] or 0)


def has_ended(worker: AsyncWorker, job: Job) -> bool:
    return job.get_status() in ("finished", "failed") and not worker._runs


def test_jobs_that_end_while_redis_is_away_are_recorded_when_it_is_back(valkey, open_queue, folder):
    queue = open_queue(valkey.url)
    limit = RateLimit(key="user-1", concurrency=1)
    good = queue.enqueue(jobs.waits, folder.path, "good", rate_limit=limit)
    bad = queue.enqueue(jobs.waits_then_fails, folder.path, "bad")
    again = queue.enqueue(
        jobs.waits_then_fails, folder.path, "again", retry=Retry(max=1, interval=60)
    )
    plain = queue.enqueue(jobs.plain_waits, folder.path, "plain")
    after = queue.enqueue(jobs.returns, "after", depends_on=good)
    limited = queue.enqueue(jobs.returns, "limited", rate_limit=limit)

    with at_work(queue) as worker:
        folder.wait_for(*(f"{name} started" for name in ("good", "bad", "again", "plain")))
        valkey.kill()
        folder.go()
        folder.wait_for("good went on", "bad went on", "again went on")
        wait_until(lambda: worker._redis_was_away)
        assert len(worker._runs) == 4
        valkey.start()

        wait_until(lambda: after.is_finished and limited.is_finished)
        wait_until(lambda: not worker._runs)
        assert (good.return_value(), plain.return_value()) == ("good", "plain")
        assert bad.get_status() == JobStatus.FAILED
        assert again.get_status() == JobStatus.SCHEDULED
        assert counts(queue) == (4, 2)
        new = queue.enqueue(jobs.waits, folder.path, "new")
        wait_until(lambda: new.is_finished)
    assert RateLimitRegistry("user-1", queue.connection).get_allowed_job_ids() == []
    assert_books_are_clean(queue)


def test_it_goes_on_with_a_redis_that_has_lost_everything(own_valkey, open_queue, folder):
    queue = open_queue(own_valkey.url)
    job = queue.enqueue(jobs.waits, folder.path, "job")
    running = queue.enqueue(jobs.plain_waits, folder.path + "/other", "running")
    (Path(folder.path) / "other").mkdir()

    with at_work(queue) as worker:
        folder.wait_for("job started")
        own_valkey.kill()
        folder.go()
        folder.wait_for("job went on")
        wait_until(lambda: worker._redis_was_away)
        own_valkey.start()

        wait_until(lambda: queue.connection.hget(job.key, "status") == b"finished")
        assert job.return_value() == "job"
        wait_until(lambda: queue.started_job_registry.get_job_ids() == [running.id])
        wait_until(lambda: [seen.name for seen in Worker.all(queue=queue)] == [worker.name])
        new = queue.enqueue(jobs.returns)
        wait_until(lambda: new.is_finished)
        Folder(Path(folder.path) / "other").go()
        wait_until(lambda: running.is_finished)


def test_a_job_can_be_stopped_after_an_outage(own_valkey, open_queue, folder):
    queue = open_queue(own_valkey.url)
    with at_work(queue) as worker:
        own_valkey.kill()
        wait_until(lambda: worker._redis_was_away)
        own_valkey.start()
        job = queue.enqueue(jobs.waits, folder.path, "job")
        folder.wait_for("job started")
        wait_until(lambda: queue.connection.pubsub_numsub(worker.pubsub_channel_name)[0][1] == 1)
        send_stop_job_command(queue.connection, job.id)
        wait_until(lambda: job.get_status() == JobStatus.STOPPED)
        wait_until(lambda: not worker._redis_was_away)


def test_without_redis_it_still_ends_and_says_what_is_lost(
    own_valkey, open_queue, folder, tmp_path
):
    queue = open_queue(own_valkey.url)
    job = queue.enqueue(jobs.waits, folder.path, "job")
    command = ["-m", "tests.lib.aioworker_jobs", own_valkey.url, "chat", "--drain-seconds", "0"]
    command += ["--cleanup-seconds", "0.2"]
    worker = Process(command, tmp_path / "log")
    try:
        folder.wait_for("job started")
        own_valkey.kill()
        worker.wait_for_log("Redis is away")
        worker.stop()
        assert f"Job {job.id} has ended, but Redis does not know it" in worker.log()
        assert "could not sign off" in worker.log()
    finally:
        worker.kill()


def test_the_scheduler_runs_again_after_an_outage(valkey, open_queue, folder, tmp_path):
    queue = open_queue(valkey.url)
    command = ["-m", "tests.lib.aioworker_jobs", valkey.url, "chat", "--with-scheduler"]
    worker = Process(command, tmp_path / "log")
    try:
        wait_until(lambda: queue.connection.keys("rq:scheduler:*"))
        valkey.kill()
        worker.wait_for_log("raised an exception")
        valkey.start()
        queue.connection.delete(*queue.connection.keys("rq:scheduler*"))
        job = queue.enqueue(jobs.fails_until, folder.path, 2, retry=Retry(max=1, interval=1))
        wait_until(lambda: job.is_finished)
        # A signal to that process must not be taken for one to the worker, whose loop it inherits.
        (key,) = queue.connection.keys("rq:scheduler:*")
        os.kill(int(queue.connection.hget(key, "pid")), signal.SIGTERM)
        wait_until(lambda: not queue.connection.keys("rq:scheduler:*"))
        assert "stopping in" not in worker.log()
        worker.send(signal.SIGTERM)
        worker._popen.wait(PATIENCE)
        assert "stopping in" in worker.log()
    finally:
        worker.kill()


class Proxy:
    """Stands between a worker and Redis, and cuts the connection at one chosen transaction."""

    def __init__(self, url: str) -> None:
        upstream = urlsplit(url)
        self._upstream = (upstream.hostname, upstream.port)
        self._lock = threading.Lock()
        self._marker: bytes | None = None
        self._after = False
        self._skip = 0
        self._sockets: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}/0"
        self.has_cut = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self, marker: bytes, *, after: bool, skip: int = 0) -> None:
        """At a coming transaction with the marker; after it, only the answer is lost."""
        self._marker, self._after, self._skip = marker, after, skip

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for each in self._sockets:
            each.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._upstream)
                self._sockets += [client, server]
                threading.Thread(target=self._relay, args=(client, server), daemon=True).start()

    def _relay(self, client: socket.socket, server: socket.socket) -> None:
        answering = threading.Thread(target=self._answer, args=(client, server), daemon=True)
        answering.start()
        request = b""
        with suppress(OSError):
            while data := client.recv(65536):
                request += data
                if self._is_hit(request, data):
                    if self._after:
                        client.shutdown(socket.SHUT_WR)  # _answer cannot pass anything on
                        server.sendall(data)
                        server.shutdown(socket.SHUT_WR)
                        answering.join(PATIENCE)
                    break
                if b"EXEC" in data or b"MULTI" not in request:
                    request = b""
                server.sendall(data)
        for each in (client, server):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        if request:
            self.has_cut.set()

    def _is_hit(self, request: bytes, data: bytes) -> bool:
        with self._lock:
            if self._marker is None or self._marker not in request or b"EXEC" not in data:
                return False
            self._skip -= 1
            if self._skip < 0:
                self._marker = None
            return self._marker is None

    def _answer(self, client: socket.socket, server: socket.socket) -> None:
        with suppress(OSError):
            while data := server.recv(65536):
                with suppress(OSError):
                    client.sendall(data)


@pytest.fixture
def proxy(valkey_url: str) -> Iterator[Proxy]:
    proxy = Proxy(valkey_url)
    yield proxy
    proxy.close()


TRANSACTIONS = {
    "the execution's start": b"ZADD\r\n$11\r\nrq:wip:chat",
    "the job's start": b"rq:queue:chat:intermediate",
    "the end": b"ZREM\r\n$11\r\nrq:wip:chat",
}


@pytest.mark.parametrize("after", [False, True], ids=["command lost", "answer lost"])
@pytest.mark.parametrize("transaction", TRANSACTIONS)
def test_a_lost_connection_makes_nothing_happen_twice(
    valkey_url, proxy, open_queue, folder, transaction, after
):
    queue = open_queue(valkey_url)
    cases = (  # what is enqueued, how many successes, failures and results come of it
        ((jobs.returns,), None, 1, 0, 1),
        ((jobs.fails,), None, 0, 1, 1),
        ((jobs.fails_until, folder.path, 2), Retry(max=1), 1, 1, 1),
        ((jobs.returns_retry, folder.path, 4), None, 1, 1, 2),
    )
    with at_work(open_queue(proxy.url)) as worker:
        for call, retry, successes, failures, results in cases:
            before = counts(queue)
            proxy.cut(TRANSACTIONS[transaction], after=after)
            job = queue.enqueue(*call, retry=retry)
            assert proxy.has_cut.wait(PATIENCE)
            proxy.has_cut.clear()
            wait_until(partial(has_ended, worker, job))
            assert job.get_status() == ("failed" if not successes else "finished")
            assert counts(queue) == (before[0] + successes, before[1] + failures)
            assert len(job.results()) == results
    assert folder.notes() == ["attempt"] * 4
    assert_books_are_clean(queue)


def test_a_slot_comes_free_though_an_answer_was_lost(valkey_url, proxy, open_queue):
    queue = open_queue(valkey_url)
    limit = RateLimit(key="user-1", concurrency=1)
    proxy.cut(TRANSACTIONS["the end"], after=True)
    queue.enqueue(jobs.returns, rate_limit=limit)
    waiting = queue.enqueue(jobs.returns, rate_limit=limit)
    with at_work(open_queue(proxy.url)):
        wait_until(lambda: waiting.is_finished)
    assert proxy.has_cut.is_set()


def test_an_outage_while_jobs_are_put_back_loses_and_doubles_none(
    valkey_url, proxy, open_queue, folder
):
    queue = open_queue(valkey_url)
    job = queue.enqueue(jobs.waits, folder.path, "job")
    with at_work(open_queue(proxy.url)):
        folder.wait_for("job started")
        proxy.cut(TRANSACTIONS["the end"], after=True)
    assert proxy.has_cut.is_set()
    assert queue.job_ids == [job.id]
    assert_books_are_clean(queue)


def test_no_job_is_lost_or_doubled_when_the_connection_is_lost_again_and_again(
    valkey_url, proxy, open_queue
):
    queue = open_queue(valkey_url)
    ids = {queue.enqueue(jobs.returns, number).id for number in range(50)}
    cuts = 0
    with at_work(open_queue(proxy.url)):
        while queue.finished_job_registry.count < 50:
            proxy.cut(b"EXEC", after=cuts % 2 == 1, skip=cuts % 5)
            cuts += proxy.has_cut.wait(jobs.POLL)
            proxy.has_cut.clear()
            time.sleep(2 * jobs.POLL)
        assert counts(queue) == (50, 0)
    assert cuts > 1
    assert set(queue.finished_job_registry.get_job_ids()) == ids
    assert_books_are_clean(queue)
