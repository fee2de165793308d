"""Jobs and callbacks that the tests' workers run; RQ imports them by name, as in production.

Jobs and tests share a `Folder` of files, which works in every process and while Redis is
unreachable: a job writes with `note` what happened, and waits in `gate` for `Folder.go()`.
"""

from __future__ import annotations

import asyncio
import functools
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

from chatproject.lib.rq_asyncio import on_shutdown

POLL = 0.01  # seconds
PATIENCE = 30  # seconds after which something is taken for hung

KINDS = (ValueError, SystemExit, KeyboardInterrupt, asyncio.CancelledError, TimeoutError)
ERRORS: dict[str, type[BaseException]] = {kind.__name__: kind for kind in KINDS}


def wait_until(condition: Callable[[], Any]) -> None:
    give_up_at = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < give_up_at, "waited in vain"
        time.sleep(POLL)


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


def count_attempt(folder: str) -> int:
    note(folder, "attempt")
    return Folder(Path(folder)).notes().count("attempt")


def is_open(folder: str) -> bool:
    return (Path(folder) / "go").exists()


async def gate(folder: str, name: str) -> str:
    job = current_job()
    while not job.connection.hget(job.key, "worker_name"):
        await asyncio.sleep(POLL)  # its start is recorded a moment after it began
    note(folder, f"{name} started")
    while not is_open(folder):
        await asyncio.sleep(POLL)
    note(folder, f"{name} went on")
    return name


def current_job() -> Job:
    job = get_current_job()
    assert job is not None
    return job


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


async def waits_for_others(count: int) -> None:
    """Returns when so many of these jobs run in this process at the same time."""
    await barrier(count).wait()


barrier = functools.cache(asyncio.Barrier)


async def fails(error: str = "ValueError") -> None:
    raise ERRORS[error]("as it should")


async def sleeps(seconds: float) -> None:
    await asyncio.sleep(seconds)


async def fails_until(folder: str, attempts: int) -> int:
    """Fails until it has been tried so many times."""
    attempt = count_attempt(folder)
    if attempt < attempts:
        raise ValueError(f"attempt {attempt}")
    return attempt


async def returns_retry(folder: str, attempts: int) -> Any:
    attempt = count_attempt(folder)
    return Retry(max=attempts) if attempt < attempts else attempt


async def returns_endless_retry() -> Any:
    return Retry(max=2)


async def returns_something_else() -> Any:
    return object()


async def keeps_meta() -> None:
    current_job().meta["seen"] = True
    current_job().save_meta()


async def names_itself() -> list[str]:
    return plain_names_itself()


async def shares_a_slot(folder: str, limit: int) -> None:
    """Notes it when more of these jobs run at the same time than may."""
    mine = Path(folder) / "running" / current_job().id
    mine.parent.mkdir(exist_ok=True)
    mine.touch()
    if len(list(mine.parent.iterdir())) > limit:
        note(folder, "too many")
    await asyncio.sleep(2 * POLL)
    mine.unlink()


async def leaves_callbacks(folder: str) -> None:
    async def close() -> None:
        await asyncio.sleep(0)
        note(folder, "closed")
        logging.getLogger(__name__).info("closed")

    on_shutdown(close)
    on_shutdown(fails)


# Plain functions


def adds(first: int, second: int) -> int:
    return first + second


def plain_names_itself() -> list[str]:
    return [current_job().id, threading.current_thread().name]


def plain_waits(folder: str, name: str) -> str:
    note(folder, f"{name} started")
    while not is_open(folder):
        time.sleep(POLL)
    return name


def plain_fails() -> None:
    raise ValueError("as it should")


def plain_loops() -> None:
    while True:
        time.sleep(POLL)


def leaves_behind(job_id: str) -> None:
    """Leaves a dependent as RQ does when two of its parents end at once."""
    job = current_job()
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
    job.connection.rpush("callbacks", f"handled {job.id} {kind.__name__}")


def failing_exception_handler(job: Job, kind: Any, value: Any, traceback: Any) -> None:
    raise RuntimeError("the handler failed")
