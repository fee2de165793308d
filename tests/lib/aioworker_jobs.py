"""What the jobs in the tests of aioworker do; as a program, a worker in a process of its own.

RQ imports them by name, as in production. Jobs and tests talk through files in a `Folder`, which
works in every process and while Redis is away: a job says with `note` what happened, and waits in
`gate` until the test says `Folder.go()`.

    python -m tests.lib.aioworker_jobs URL QUEUE [options of main()]
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from django.db import connections
from redis import Redis
from rq import Queue
from rq.job import Job, JobStatus, Retry, get_current_job
from rq.serializers import JSONSerializer

from chatproject.lib import aioworker
from chatproject.lib.aioworker import AsyncWorker, on_shutdown

POLL = 0.01  # seconds
PATIENCE = 30  # seconds after which something is taken for hung


def wait_until(condition: Callable[[], Any]) -> Any:
    give_up_at = time.monotonic() + PATIENCE
    while not (value := condition()):
        assert time.monotonic() < give_up_at, "waited in vain"
        time.sleep(POLL)
    return value


class Folder:
    """The test's side of the folder; jobs get its path."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def notes(self) -> list[str]:
        notes = Path(self.path) / "notes"
        return notes.read_text().splitlines() if notes.exists() else []

    def wait_for(self, *notes: str) -> None:
        wait_until(lambda: set(notes) <= set(self.notes()))

    def go(self) -> None:
        (Path(self.path) / "go").touch()


def note(folder: str, text: str) -> None:
    with (Path(folder) / "notes").open("a") as notes:
        notes.write(f"{text}\n")


async def gate(folder: str, name: str) -> str:
    await is_noted()
    note(folder, f"{name} started")
    while not (Path(folder) / "go").exists():
        await asyncio.sleep(POLL)
    note(folder, f"{name} went on")
    return name


async def is_noted() -> None:
    """Returns when Redis knows that this job runs, which it learns a moment after it began."""
    job = get_current_job()
    assert job is not None
    while not job.connection.hget(job.key, "worker_name"):
        await asyncio.sleep(POLL)


# Coroutine functions


async def returns(value: Any = None) -> Any:
    return value


async def waits(folder: str, name: str) -> str:
    try:
        return await gate(folder, name)
    except asyncio.CancelledError as error:
        note(folder, f"{name} cancelled: {error}")
        raise


async def waits_then_fails(folder: str, name: str) -> None:
    await gate(folder, name)
    raise ValueError(name)


async def settles(folder: str, name: str) -> str:
    """Ends in order when it is cancelled."""
    try:
        return await gate(folder, name)
    except asyncio.CancelledError:
        return "settled"


async def stumbles(folder: str, name: str) -> None:
    """Fails while it cleans up."""
    try:
        await gate(folder, name)
    finally:
        raise ValueError("clean-up failed")


async def ignores_cancellation(folder: str, name: str) -> None:
    while True:
        try:
            await gate(folder, name)
        except asyncio.CancelledError:
            note(folder, f"{name} ignored it")


_here = 0
_all_here = asyncio.Event()


async def waits_for_others(count: int) -> int:
    """Returns when so many of these jobs run in this process at the same time."""
    global _here
    _here += 1
    if _here == count:
        _all_here.set()
    await _all_here.wait()
    return _here


async def fails(message: str = "as it should") -> None:
    raise ValueError(message)


async def exits() -> None:
    raise SystemExit(3)


async def interrupts() -> None:
    raise KeyboardInterrupt


async def cancels_itself() -> None:
    raise asyncio.CancelledError("by itself")


async def sleeps(seconds: float) -> None:
    await asyncio.sleep(seconds)


async def times_out_by_itself() -> None:
    raise TimeoutError("of the job's own")


async def fails_until(folder: str, attempts: int) -> int:
    """Fails until it has been tried so many times."""
    note(folder, "attempt")
    done = len((Path(folder) / "notes").read_text().split())
    if done < attempts:
        raise ValueError(f"attempt {done}")
    return done


async def returns_retry(folder: str, attempts: int) -> Any:
    note(folder, "attempt")
    done = len((Path(folder) / "notes").read_text().split())
    return Retry(max=attempts) if done < attempts else done


async def returns_endless_retry() -> Any:
    return Retry(max=2)


async def returns_something_else() -> Any:
    return object()


async def keeps_meta() -> None:
    job = get_current_job()
    assert job is not None
    job.meta["seen"] = True
    job.save_meta()


async def names_itself() -> list[str]:
    job = get_current_job()
    assert job is not None
    return [job.id, threading.current_thread().name]


async def shares_a_slot(folder: str, limit: int) -> None:
    """Notes it when more of these jobs run at the same time than may."""
    here = Path(folder) / "running"
    here.mkdir(exist_ok=True)
    job = get_current_job()
    assert job is not None
    mine = here / job.id
    mine.touch()
    if len(list(here.iterdir())) > limit:
        note(folder, "too many")
    await asyncio.sleep(2 * POLL)
    mine.unlink()


async def leaves_a_callback(folder: str) -> None:
    async def close() -> None:
        await asyncio.sleep(0)
        note(folder, "closed")
        logging.getLogger(__name__).info("closed")

    async def fail() -> None:
        raise ValueError("cannot be closed")

    on_shutdown(close)
    on_shutdown(fail)


# Plain functions


def adds(first: int, second: int) -> int:
    return first + second


def plain_names_itself() -> list[str]:
    job = get_current_job()
    assert job is not None
    return [job.id, threading.current_thread().name]


def plain_waits(folder: str, name: str) -> str:
    note(folder, f"{name} started")
    while not (Path(folder) / "go").exists():
        time.sleep(POLL)
    return name


def plain_fails() -> None:
    raise ValueError("as it should")


def plain_loops() -> None:
    while True:
        time.sleep(POLL)


def leaves_behind(job_id: str) -> None:
    """What RQ does with a dependent when the ends of two jobs meet."""
    job = get_current_job()
    assert job is not None
    other = Job.fetch(job_id, connection=job.connection, serializer=JSONSerializer)
    other.set_status(JobStatus.READY_TO_ENQUEUE)
    queue = Queue(job.origin, connection=job.connection, serializer=JSONSerializer)
    queue.ready_job_registry.add(other)


database_wrappers: list[Any] = []


def asks_the_database() -> int:
    database_wrappers.append(connections["default"])
    with connections["default"].cursor() as cursor:
        cursor.execute("SELECT 1")
        (one,) = cursor.fetchone()
    assert database_wrappers[-1].connection is not None
    return int(one)


# Callbacks


def on_success(job: Job, connection: Redis, result: Any) -> None:
    connection.rpush("callbacks", f"success {job.id} {result}")


def on_success_waits(job: Job, connection: Redis, result: Any) -> None:
    plain_waits(result, "callback")


def on_failure(job: Job, connection: Redis, kind: Any, value: Any, traceback: Any) -> None:
    connection.rpush("callbacks", f"failure {job.id} {getattr(kind, '__name__', kind)}")


def on_stopped(job: Job, connection: Redis) -> None:
    connection.rpush("callbacks", f"stopped {job.id}")


def on_success_fails(job: Job, connection: Redis, result: Any) -> None:
    raise RuntimeError("the callback failed")


def on_success_exits(job: Job, connection: Redis, result: Any) -> None:
    raise SystemExit


def on_success_hangs(job: Job, connection: Redis, result: Any) -> None:
    plain_loops()


def exception_handler(job: Job, kind: Any, value: Any, traceback: Any) -> None:
    job.connection.rpush("handled", f"{job.id} {kind.__name__}")


def failing_exception_handler(job: Job, kind: Any, value: Any, traceback: Any) -> None:
    raise RuntimeError("the handler failed")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("queue")
    parser.add_argument("--drain-seconds", type=float)
    parser.add_argument("--with-scheduler", action="store_true")
    parser.add_argument("--cleanup-seconds", type=float, default=aioworker.CLEANUP_SECONDS)
    arguments = parser.parse_args()
    aioworker.CLEANUP_SECONDS = arguments.cleanup_seconds
    logging.basicConfig(level="INFO", format="%(levelname)s %(name)s: %(message)s")
    client = Redis.from_url(arguments.url)
    queue = Queue(arguments.queue, connection=client, serializer=JSONSerializer)
    worker = AsyncWorker(
        [queue],
        connection=client,
        serializer=JSONSerializer,
        drain_seconds=arguments.drain_seconds,
        job_monitoring_interval=1,
        name="subject",
    )
    worker.work(logging_level="INFO", with_scheduler=arguments.with_scheduler)


if __name__ == "__main__":
    main()
