"""Workers for the tests: in a thread of this process, or as a program in a process of their own.

python -m tests.lib.rq_asyncio.workers URL DRAIN_SECONDS CLEANUP_SECONDS [--with-scheduler]
"""

from __future__ import annotations

import logging
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from redis import Redis
from rq import Queue
from rq.job import Job
from rq.serializers import JSONSerializer
from rq.worker import Worker

from chatproject.lib.rq_asyncio import AsyncWorker
from chatproject.lib.rq_asyncio import worker as worker_module
from tests.lib.rq_asyncio import jobs
from tests.lib.rq_asyncio.jobs import PATIENCE, Folder, wait_until
from tests.support.programs import Program

PROJECT = Path(__file__).resolve().parents[3]


class QuickWorker(AsyncWorker):
    """Notices everything sooner, so that the tests need not wait."""

    dequeue_timeout = 0.05  # type: ignore[assignment]


def make_queue(connection: Redis, name: str = "chat") -> Queue:
    return Queue(name, connection=connection, serializer=JSONSerializer)


def make_worker(
    *queues: Queue, worker_class: type[AsyncWorker] = QuickWorker, **options: Any
) -> AsyncWorker:
    connection = queues[0].connection
    return worker_class(queues, connection=connection, serializer=JSONSerializer, **options)


def work(worker: AsyncWorker, **options: Any) -> bool:
    """Let a worker work, in a thread: in the main one it would freeze other tests' garbage."""
    with ThreadPoolExecutor(1, "loop") as pool:
        return pool.submit(worker.work, **options).result()


def burst(*queues: Queue, **options: Any) -> bool:
    return work(make_worker(*queues, **options), burst=True)


@contextmanager
def at_work(queue: Queue, **options: Any) -> Iterator[AsyncWorker]:
    """A worker in a thread, which is shut down at the end."""
    worker = make_worker(queue, **{"job_monitoring_interval": 0.2, "drain_seconds": 0} | options)
    thread = threading.Thread(target=worker.work, daemon=True)
    thread.start()
    try:
        wait_until(lambda: worker.get_state() in ("idle", "busy", "suspended"))
        yield worker
    finally:
        with suppress(RuntimeError):  # its loop is closed: it has ended already
            worker.request_stop(signal.SIGTERM, None)
        thread.join(PATIENCE)
        assert not thread.is_alive()


@contextmanager
def running(
    queue: Queue, folder: Folder, function: Any = jobs.waits, **job_options: Any
) -> Iterator[tuple[Job, AsyncWorker]]:
    """A worker that runs one job, which waits for `folder.go()`."""
    job = queue.enqueue(function, folder.path, "job", **job_options)
    with at_work(queue) as worker:
        folder.wait_for("job started")
        yield job, worker


def assert_records_are_clean(queue: Queue) -> None:
    """Redis holds no trace of ended executions and workers."""
    connection = queue.connection
    assert queue.started_job_registry.get_job_ids(cleanup=False) == []
    assert queue.intermediate_queue.get_job_ids() == []
    assert connection.keys("rq:execution*") == []
    assert connection.keys("rq:worker:*:executions") == []
    assert Worker.all(connection) == []


def end(process: Program) -> None:
    """Wait for the end of a worker's process, which must come in order."""
    assert process.wait() == 0
    assert "Traceback" not in process.text()


def error_of(job: Job) -> str:
    result = job.latest_result()
    assert result is not None
    return str(result.exc_string).strip()


def main(url: str, drain_seconds: str, cleanup_seconds: str, *options: str) -> None:
    worker_module.CLEANUP_SECONDS = float(cleanup_seconds)
    logging.basicConfig(level="INFO", format="%(levelname)s %(name)s: %(message)s")
    settings = {"drain_seconds": float(drain_seconds), "job_monitoring_interval": 1}
    queue = make_queue(Redis.from_url(url))
    worker = make_worker(queue, worker_class=AsyncWorker, name="subject", **settings)
    worker.work(logging_level="INFO", with_scheduler="--with-scheduler" in options)


if __name__ == "__main__":
    main(*sys.argv[1:])
