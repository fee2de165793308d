"""The queue of chat: what is put into it, and the entry points that workers call.

Ids, never objects, travel in a job. This module, the clock and the worker are the only ones that
know RQ.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache, lru_cache
from typing import Any
from uuid import UUID

import django_rq
import msgspec
import redis
from django.conf import settings
from redis.client import Pipeline
from redis.exceptions import NoScriptError
from rq import worker_registration
from rq.defaults import RQ_KEY_PREFIX
from rq.executions import WORKER_EXECUTIONS_KEY_TEMPLATE
from rq.job import Job, JobStatus
from rq.queue import Queue
from rq.rate_limit import RateLimit, RateLimitRegistry

from chat import pace
from chat.models import Run
from chat.pace import Pace
from chatproject.lib.redis.clients import sync_client

logger = logging.getLogger(__name__)

QUEUE = "chat"

# How long RQ knows a job that was made, in 6 kB of Redis: the run's row says all there is to say.
MADE_SECONDS = 60

# A worker checks in every second; one that was not heard of for so long makes nothing.
LIVING = timedelta(seconds=10)


async def generate(run_id: str, attempt: int) -> None:
    """Make the reply of a run; `attempt` is the number that the claim must find free."""
    # Imported by the worker alone: the provider's library costs a web process 60 MB.
    from chat import generate

    handed_over = await generate.run(UUID(run_id), attempt)
    if handed_over is not None:
        try:
            await asyncio.to_thread(enqueue, handed_over)
        except redis.RedisError:
            logger.warning("run %s could not be queued yet", run_id)  # the sweeper will


@dataclass(frozen=True, slots=True)
class Place:
    """Where a run waits. `position` 1 is the next; `eta` is the expected wait in seconds, if known.

    A run that is held back (`is_held`), as its user has USER_CONCURRENCY others in line or being
    made, is not in line yet: its position is that among the user's own.
    """

    position: int
    eta: float | None
    is_held: bool = False


def enqueue(run: Run, *, at_front: bool = False) -> Place | None:
    """Put a queued run's next attempt into the queue; tells its place, None if it is being taken.

    Of a user's jobs at most USER_CONCURRENCY are in line or being made; RQ holds the others back,
    the oldest message first. A later attempt goes to the front of the line and takes the slot of
    the one before it, so that no other run of the user comes between. Once more does no harm: the
    job is in line once, and whoever claims the run first makes it. Raises redis.RedisError.
    """
    queue = _queue()
    attempt = run.attempt + 1
    name = job_id(run.id, attempt)
    job = queue.create_job(
        "chat.jobs.generate",
        kwargs={"run_id": str(run.id), "attempt": attempt},
        job_id=name,
        description=f"run {run.id}, attempt {attempt}",
        result_ttl=MADE_SECONDS,
        status=JobStatus.RATE_LIMITED,
        rate_limit=RateLimit(_limit_key(run.user_id), settings.USER_CONCURRENCY),
    )
    job.origin = queue.name
    job.enqueue_at_front = at_front or attempt > 1
    limits = _limits(run.user_id)

    # RQ's own way takes four round trips, knows no order but its own, and leaves the slots of jobs
    # that died where they are: the next one would wait for RQ's clean-up, about 300 seconds.
    def put(pipeline: Pipeline) -> None:
        pipeline.sadd(queue.redis_queues_keys, queue.key)
        pipeline.zrem(limits.allowed_key, name, job_id(run.id, run.attempt))
        pipeline.lrem(queue.key, 0, name)
        pipeline.lrem(queue.intermediate_queue_key, 0, name)
        limits.register(settings.USER_CONCURRENCY, pipeline)
        job.save(pipeline)
        pipeline.persist(job.key)
        limits.add_to_rate_limited(name, pipeline, timestamp=run.queued_at.timestamp())
        limits.acquire_and_enqueue(settings.USER_CONCURRENCY, pipeline=pipeline)
        _ask_place(pipeline, run.user_id, name)

    return _place(*_execute(put)[-4:])


def _execute(fill: Callable[[Pipeline], None]) -> list[Any]:
    """Fill a pipeline and execute it; what it does must do no harm twice.

    redis-py asks first whether Redis knows the scripts in it, for which each message would wait.
    Here it tells when it does not, as it was restarted; then they are loaded.
    """
    pipeline = _queue().connection.pipeline()
    fill(pipeline)
    pipeline.scripts.clear()
    try:
        return list(pipeline.execute())
    except NoScriptError:
        fill(pipeline)
        return list(pipeline.execute())


def release(user_id: int, run_id: UUID, attempt: int) -> None:
    """Free the slot that a dead worker's job holds among its user's; the next one takes it.

    Only for a run that has ended: `enqueue` passes the slot on to the run's own next attempt.
    Raises redis.RedisError.
    """
    limits = _limits(user_id)
    pipeline = _queue().connection.pipeline()
    pipeline.zrem(limits.allowed_key, job_id(run_id, attempt))
    limits.acquire_and_enqueue(settings.USER_CONCURRENCY, pipeline=pipeline)
    pipeline.execute()


def withdraw(user_id: int, run_id: UUID, attempt: int) -> None:
    """Take the job of a run that ended while it waited out of the queue.

    A worker that is taking it just then finds nothing to make. Raises redis.RedisError.
    """
    queue, limits, name = _queue(), _limits(user_id), job_id(run_id, attempt)
    pipeline = queue.connection.pipeline()
    pipeline.lrem(queue.key, 0, name)
    pipeline.zrem(limits.rate_limited_key, name)
    pipeline.zrem(limits.allowed_key, name)
    pipeline.delete(Job.key_for(name))
    limits.acquire_and_enqueue(settings.USER_CONCURRENCY, pipeline=pipeline)
    pipeline.execute()


@dataclass(frozen=True, slots=True)
class Room:
    """What there is room for: runs in line, and the user's in line or being made and held back."""

    line: int
    placed: int
    held: int
    pace: Pace | None


def room(user_id: int) -> Room:
    """Look whether one more message finds room. Raises redis.RedisError."""
    queue, limits = _queue(), _limits(user_id)
    pipeline = queue.connection.pipeline(transaction=False)
    pipeline.llen(queue.key)
    pipeline.zcard(limits.allowed_key)
    pipeline.zcard(limits.rate_limited_key)
    pipeline.get(pace.KEY)
    line, placed, held, measured = pipeline.execute()
    return Room(line, placed, held, pace.decode(measured))


def place(run: Run) -> Place | None:
    """A queued run's place; None when it has none, as a worker is taking it or its job was lost.

    Raises redis.RedisError.
    """
    pipeline = _queue().connection.pipeline(transaction=False)
    _ask_place(pipeline, run.user_id, job_id(run.id, run.attempt + 1))
    return _place(*pipeline.execute())


def _ask_place(pipeline: Pipeline, user_id: int, name: str) -> None:
    queue = _queue()
    pipeline.lpos(queue.key, name, rank=-1)  # from the end, where it most likely is
    pipeline.zrank(_limits(user_id).rate_limited_key, name)
    pipeline.llen(queue.key)
    pipeline.get(pace.KEY)


def _place(index: int | None, rank: int | None, line: int, measured: Any) -> Place | None:
    known = pace.decode(measured)
    if index is not None:
        return Place(index + 1, known.wait(index + 1) if known else None)
    if rank is not None:
        eta = known.wait_held(rank + 1, line) if known else None
        return Place(rank + 1, eta, is_held=True)
    return None


def places(runs: Sequence[Run]) -> dict[UUID, Place]:
    """The places of many queued runs in two looks; those without one are not in the answer.

    Raises redis.RedisError.
    """
    queue = _queue()
    names = {job_id(run.id, run.attempt + 1): run for run in runs}
    pipeline = queue.connection.pipeline(transaction=False)
    pipeline.lrange(queue.key, 0, -1)
    pipeline.get(pace.KEY)
    line, measured = pipeline.execute()
    found = {}
    for index, name in enumerate(line):
        if (run := names.pop(name.decode(), None)) is not None:
            found[run.id] = _place(index, None, len(line), measured)
    users = {run.user_id for run in names.values()}
    for user_id in users:
        pipeline.zrange(_limits(user_id).rate_limited_key, 0, -1)
    for held in pipeline.execute():
        for rank, name in enumerate(held):
            if (run := names.get(name.decode())) is not None:
                found[run.id] = _place(None, rank, len(line), measured)
    return {run_id: place for run_id, place in found.items() if place is not None}


def known(runs: Sequence[Run]) -> set[UUID]:
    """Which of the queued runs have a job that Redis still knows. Raises redis.RedisError."""
    pipeline = _queue().connection.pipeline(transaction=False)
    for run in runs:
        pipeline.exists(Job.key_for(job_id(run.id, run.attempt + 1)))
    return {run.id for run, exists in zip(runs, pipeline.execute(), strict=True) if exists}


@dataclass(frozen=True, slots=True)
class Line:
    """The whole line: runs in it, and those of all users that are held back."""

    length: int
    held: int
    pace: Pace | None


def line() -> Line:
    """Look at the line as a whole. Raises redis.RedisError."""
    queue = _queue()
    pipeline = queue.connection.pipeline(transaction=False)
    pipeline.llen(queue.key)
    pipeline.get(pace.KEY)
    length, measured = pipeline.execute()
    for limits in RateLimitRegistry.all(queue.connection):
        pipeline.zcard(limits.rate_limited_key)
    return Line(length, sum(pipeline.execute()), pace.decode(measured))


def held(user_ids: Sequence[int]) -> list[int]:
    """How many runs of each of the users are held back. Raises redis.RedisError."""
    pipeline = _queue().connection.pipeline(transaction=False)
    for user_id in user_ids:
        pipeline.zcard(_limits(user_id).rate_limited_key)
    return list(pipeline.execute())


@dataclass(frozen=True, slots=True)
class Worker:
    """A worker process as Redis knows it; `is_taking`: it lives and takes further jobs."""

    name: str
    jobs: int
    last_seen: datetime
    is_taking: bool


def workers(now: datetime) -> list[Worker]:
    """The workers of this queue, by name. One that died is among them for some minutes more.

    Raises redis.RedisError.
    """
    queue = _queue()
    keys = sorted(worker_registration.get_keys(queue))
    names = [key.removeprefix(f"{RQ_KEY_PREFIX}:worker:") for key in keys]
    pipeline = queue.connection.pipeline(transaction=False)
    for key, name in zip(keys, names, strict=True):
        pipeline.hmget(key, ["last_heartbeat", "shutdown_requested_date"])
        pipeline.scard(WORKER_EXECUTIONS_KEY_TEMPLATE.format(name))
    answers = iter(pipeline.execute())
    found = []
    for name, (beat, stopping), jobs in zip(names, answers, answers, strict=True):
        if beat is not None:
            last_seen = datetime.fromisoformat(beat.decode())
            is_taking = not stopping and now - last_seen < LIVING
            found.append(Worker(name, jobs, last_seen, is_taking))
    return found


def measure_pace(now: datetime) -> None:
    """Let waiting runs know how long their wait will be. Raises redis.RedisError."""
    taking = sum(worker.is_taking for worker in workers(now))
    measured = pace.measured(capacity=taking * settings.WORKER_CONCURRENCY)
    if measured is not None:
        _queue().connection.set(pace.KEY, msgspec.json.encode(measured), ex=pace.SECONDS)


def job_id(run_id: UUID, attempt: int) -> str:
    """The name of the job that makes an attempt of a run."""
    return f"run-{run_id}-{attempt}"


@lru_cache(maxsize=1_000)  # to make one takes longer than to use it: it hashes RQ's scripts
def _limits(user_id: int) -> RateLimitRegistry:
    return RateLimitRegistry(_limit_key(user_id), _queue().connection)


def _limit_key(user_id: int) -> str:
    return f"user:{user_id}"


@cache
def _queue() -> Queue:
    # Our client instead of a new one per call, which would open a connection for each message.
    return django_rq.get_queue(QUEUE, connection=sync_client())
