"""The queue of runs in RQ: enqueueing, throttling per user, positions, workers.

Ids, never objects, travel in a job. Functions raise redis.RedisError while Redis is unreachable.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
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
from rq.registry import FailedJobRegistry

from billing.metering import plan_limits
from chat.models import Provider, Run
from chat.runs import wait_estimate
from chat.runs.wait_estimate import Throughput
from chat.streaming import places
from chatproject.lib import log_context, rate_limits
from chatproject.lib.env import Limit
from chatproject.lib.redis.clients import sync_client

logger = logging.getLogger(__name__)

QUEUE = "chat"
NAMES = tuple(settings.RQ_QUEUES)

# The entry point of a job. Redis stores it, so processes of the previous release must find it, too.
GENERATE = "chat.jobs.generate"

# Seconds that RQ keeps a finished job, of 6 kB in Redis: the run's row has all that matters.
FINISHED_JOB_TTL = 60

# A worker sends a heartbeat every second; after this silence it counts as dead.
WORKER_TIMEOUT = timedelta(seconds=10)


@dataclass(frozen=True, slots=True)
class Position:
    """Where a run waits. `number` 1 is the next; `eta` is the expected wait in seconds, if known.

    A run is throttled while its user has as many other runs queued or running as the plan permits: it is not in
    the queue yet, and its number is that among the user's throttled runs. `is_provider_busy`: a worker
    took it, but its provider's concurrency limit is reached; the number is that among the runs that
    wait for this provider.
    """

    number: int
    eta: float | None
    is_throttled: bool = False
    is_provider_busy: bool = False


INDEX_JOB = "chat.generation.jobs.index_messages"


def enqueue(run: Run, *, at_front: bool = False) -> Position | None:
    """Enqueue the next attempt of a run; return its position, None if a worker is taking it.

    Throttling: at most so many of a user's jobs are queued or running as the plan permits
    (USER_CONCURRENCY without one); RQ keeps the others back, the oldest message first. A later attempt goes to the front of the queue and takes the slot
    of the one before it, so that no other run of the user comes between. A repetition does no harm:
    the job is queued once, and the first worker to claim the run generates it.
    """
    queue = rq_queue()
    attempt = run.attempt + 1
    name = job_id(run.id, attempt)
    limits = _limits(run.user_id)
    concurrency = plan_limits.parallel_runs(run.user.plan_id)
    job = queue.create_job(
        GENERATE,
        kwargs={"run_id": str(run.id), "attempt": attempt},
        job_id=name,
        description=f"run {run.id}, attempt {attempt}",
        meta=log_context.carried(),
        result_ttl=FINISHED_JOB_TTL,
        status=JobStatus.RATE_LIMITED,
        rate_limit=RateLimit(limits.key, concurrency),
    )
    job.origin = queue.name
    job.enqueue_at_front = at_front or attempt > 1

    # RQ's own way takes four round trips, keeps no order but its own, and leaves the slots of dead
    # jobs occupied: the next job would wait for RQ's clean-up, about 300 seconds. And redis-py asks
    # Redis first whether it has the scripts, one round trip for each message. Here a Redis that was
    # restarted answers NOSCRIPT, and the second turn loads them; the commands bear repetition.
    for has_scripts in (True, False):
        pipeline = queue.connection.pipeline()
        pipeline.sadd(queue.redis_queues_keys, queue.key)
        pipeline.zrem(limits.allowed_key, name, job_id(run.id, run.attempt))
        pipeline.lrem(queue.key, 0, name)
        pipeline.lrem(queue.intermediate_queue_key, 0, name)
        limits.register(concurrency, pipeline)
        job.save(pipeline)
        pipeline.persist(job.key)
        limits.add_to_rate_limited(name, pipeline, timestamp=run.queued_at.timestamp())
        limits.acquire_and_enqueue(concurrency, pipeline=pipeline)
        _read_position(pipeline, run.user_id, name)
        if has_scripts:
            pipeline.scripts.clear()
        try:
            answers = pipeline.execute()
            break
        except NoScriptError:
            if not has_scripts:
                raise
    return _parse_position(*answers[-5:])


def _concurrency(user_id: int) -> int:
    """Return how many jobs of a user may be queued or running, as the last message has stored it."""
    stored: Any = rq_queue().connection.hget(_limits(user_id).config_key, "concurrency")
    return int(stored or settings.USER_CONCURRENCY)


def release(user_id: int, run_id: UUID, attempt: int) -> None:
    """Free the slot of a dead worker's job; the user's next throttled job takes it.

    Only for a run that has ended: `enqueue` passes the slot on to the run's own next attempt.
    """
    limits, concurrency = _limits(user_id), _concurrency(user_id)
    pipeline = rq_queue().connection.pipeline()
    pipeline.zrem(limits.allowed_key, job_id(run_id, attempt))
    limits.acquire_and_enqueue(concurrency, pipeline=pipeline)
    pipeline.execute()


def withdraw(user_id: int, run_id: UUID, attempt: int) -> None:
    """Remove the job of a run that ended while it waited.

    A worker that is taking the job at that time finds no run to claim.
    """
    queue, limits, name = rq_queue(), _limits(user_id), job_id(run_id, attempt)
    concurrency = _concurrency(user_id)
    pipeline = queue.connection.pipeline()
    pipeline.lrem(queue.key, 0, name)
    pipeline.zrem(limits.rate_limited_key, name)
    pipeline.zrem(limits.allowed_key, name)
    pipeline.delete(Job.key_for(name))
    limits.acquire_and_enqueue(concurrency, pipeline=pipeline)
    pipeline.execute()
    places.leave(run_id)


@dataclass(frozen=True, slots=True)
class UserLoad:
    """Runs in the whole queue (`queued`), and a user's runs: admitted (queued or running), throttled.

    Runs that wait for a busy provider are in the whole queue, too.

    `is_too_fast`: the user has used up the limit `messages`.
    """

    queued: int
    admitted: int
    throttled: int
    throughput: Throughput | None
    is_too_fast: bool


def count_message(user_id: int, limit: Limit | None) -> UserLoad:
    """Count a message of a user by a limit, and read what admission control decides on, in one round trip.

    Without a limit nothing is counted.
    """
    queue, limits = rq_queue(), _limits(user_id)
    for has_scripts in (True, False):  # as in `enqueue`
        pipeline = queue.connection.pipeline(transaction=False)
        pipeline.llen(queue.key)
        pipeline.zcard(limits.allowed_key)
        pipeline.zcard(limits.rate_limited_key)
        pipeline.hlen(places.WAITING)
        pipeline.get(wait_estimate.KEY)
        if limit is not None:
            rate_limits.hit_in_pipeline(pipeline, "messages", limit, user_id)
        if has_scripts:
            pipeline.scripts.clear()
        try:
            queued, admitted, throttled, parked, measured, *accepted = pipeline.execute()
            break
        except NoScriptError:
            if not has_scripts:
                raise
    return UserLoad(
        queued + parked, admitted, throttled, wait_estimate.decode(measured), not all(accepted)
    )


def position(run: Run) -> Position | None:
    """Return a queued run's position; None while a worker is taking it, or when its job was lost."""
    pipeline = rq_queue().connection.pipeline(transaction=False)
    _read_position(pipeline, run.user_id, job_id(run.id, run.attempt + 1))
    pipeline.hget(places.WAITING, str(run.id))
    *answers, waiting_at = pipeline.execute()
    if waiting_at is None:
        return _parse_position(*answers)
    number = places.positions({run.id: int(waiting_at)}).get(run.id)
    return Position(number, None, is_provider_busy=True) if number else None


def _read_position(pipeline: Pipeline, user_id: int, name: str) -> None:
    queue, limits = rq_queue(), _limits(user_id)
    pipeline.lpos(queue.key, name, rank=-1)  # from the end, where it most likely is
    pipeline.zrank(limits.rate_limited_key, name)
    pipeline.hget(limits.config_key, "concurrency")
    pipeline.llen(queue.key)
    pipeline.get(wait_estimate.KEY)


def _parse_position(
    index: int | None, rank: int | None, concurrency: Any, queued: int, measured: Any
) -> Position | None:
    throughput = wait_estimate.decode(measured)
    if index is not None:
        return Position(index + 1, throughput.wait(index + 1) if throughput else None)
    if rank is not None:
        at_once = int(concurrency or settings.USER_CONCURRENCY)
        eta = throughput.wait_throttled(rank + 1, queued, at_once) if throughput else None
        return Position(rank + 1, eta, is_throttled=True)
    return None


def positions(runs: Sequence[Run]) -> dict[UUID, Position]:
    """Return the positions of many queued runs, in three round trips; runs without one are left out."""
    queue = rq_queue()
    names = {job_id(run.id, run.attempt + 1): run for run in runs}
    pipeline = queue.connection.pipeline(transaction=False)
    pipeline.lrange(queue.key, 0, -1)
    pipeline.get(wait_estimate.KEY)
    queued, measured = pipeline.execute()
    found = {}
    for index, name in enumerate(queued):
        if (run := names.pop(name.decode(), None)) is not None:
            found[run.id] = _parse_position(index, None, None, len(queued), measured)
    for user_id in {run.user_id for run in names.values()}:
        pipeline.zrange(_limits(user_id).rate_limited_key, 0, -1)
        pipeline.hget(_limits(user_id).config_key, "concurrency")
    answers = iter(pipeline.execute())
    for throttled, concurrency in zip(answers, answers, strict=True):
        for rank, name in enumerate(throttled):
            if (run := names.get(name.decode())) is not None:
                found[run.id] = _parse_position(None, rank, concurrency, len(queued), measured)
    waiting = places.waiting_at([run.id for run in names.values() if run.id not in found])
    for run_id, number in places.positions(waiting).items():
        found[run_id] = Position(number, None, is_provider_busy=True)
    return {run_id: at for run_id, at in found.items() if at is not None}


def take_place(run: Run, provider: Provider, *, waits: bool = True) -> bool:
    """Take a place at a provider with a concurrency limit; without a free one the run `waits` there.

    Its job then ends; `serve_waiting` enqueues the run again, at the front.
    """
    assert provider.concurrency is not None
    position = places.take(
        provider.pk, provider.concurrency, run_id=run.pk, user_id=run.user_id, waits=waits
    )
    return position == 0


def serve_waiting(provider_id: int, limit: int | None, *, ended: UUID | None = None) -> None:
    """Free the place of a run that has ended, and enqueue the runs that a place is now free for."""
    freed = [] if ended is None else [ended]
    while served := places.serve(provider_id, limit, ended=freed):
        queued = Run.objects.filter(pk__in=served, status=Run.Status.QUEUED)
        found = queued.select_related("user").only("attempt", "user__plan", "queued_at")
        runs = {run.pk: run for run in found}
        for run_id in reversed(served):  # each goes to the front
            if run_id in runs:
                enqueue(runs[run_id], at_front=True)
        freed = [run_id for run_id in served if run_id not in runs]  # ended while it waited
        if not freed:
            return


def known(runs: Sequence[Run]) -> set[UUID]:
    """Return which of the queued runs have a job that Redis still has."""
    pipeline = rq_queue().connection.pipeline(transaction=False)
    for run in runs:
        pipeline.exists(Job.key_for(job_id(run.id, run.attempt + 1)))
    return {run.id for run, exists in zip(runs, pipeline.execute(), strict=True) if exists}


@dataclass(frozen=True, slots=True)
class QueueLength:
    """Runs in the whole queue, throttled runs of all users, and runs that wait for a busy provider."""

    queued: int
    throttled: int
    waiting: int
    throughput: Throughput | None

    def expected_wait(self) -> float | None:
        """Return the wait in seconds of a new message of a user without other runs, if known."""
        return self.throughput.wait(self.queued + 1) if self.throughput else None


def length() -> QueueLength:
    """Return the length of the queue."""
    queue = rq_queue()
    pipeline = queue.connection.pipeline(transaction=False)
    pipeline.llen(queue.key)
    pipeline.hlen(places.WAITING)
    pipeline.get(wait_estimate.KEY)
    queued, waiting, measured = pipeline.execute()
    for limits in RateLimitRegistry.all(queue.connection):
        pipeline.zcard(limits.rate_limited_key)
    return QueueLength(queued, sum(pipeline.execute()), waiting, wait_estimate.decode(measured))


def throttled(user_ids: Sequence[int]) -> list[int]:
    """Return how many runs of each of the users are throttled."""
    pipeline = rq_queue().connection.pipeline(transaction=False)
    for user_id in user_ids:
        pipeline.zcard(_limits(user_id).rate_limited_key)
    return list(pipeline.execute())


@dataclass(frozen=True, slots=True)
class Worker:
    """A worker process as registered in Redis; `is_taking`: it is alive and takes further jobs."""

    name: str
    jobs: int
    last_seen: datetime
    is_taking: bool


def workers(now: datetime, of: str = QUEUE) -> list[Worker]:
    """Return the workers of a queue, by name. A dead one is listed for some minutes more."""
    queue = rq_queue(of)
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
            is_taking = not stopping and now - last_seen < WORKER_TIMEOUT
            found.append(Worker(name, jobs, last_seen, is_taking))
    return found


@dataclass(frozen=True, slots=True)
class JobCounts:
    """Jobs of all queues by queue: waiting ones, and failed ones that are still listed."""

    waiting: dict[str, int]
    failed: dict[str, int]


def job_counts() -> JobCounts:
    """Count jobs of all kinds, also those of billing and of mails."""
    pipeline = rq_queue().connection.pipeline(transaction=False)
    for name in NAMES:
        pipeline.llen(rq_queue(name).key)
        pipeline.zcard(FailedJobRegistry.key_template.format(name))
    answers = pipeline.execute()
    return JobCounts(
        waiting=dict(zip(NAMES, answers[::2], strict=True)),
        failed=dict(zip(NAMES, answers[1::2], strict=True)),
    )


def publish_throughput(now: datetime) -> None:
    """Measure the throughput and store it in Redis, for the estimates of waiting runs."""
    taking = sum(worker.is_taking for worker in workers(now))
    measured = wait_estimate.measure(capacity=taking * settings.WORKER_CONCURRENCY)
    if measured is not None:
        encoded = msgspec.json.encode(measured)
        rq_queue().connection.set(wait_estimate.KEY, encoded, ex=wait_estimate.TTL)


def job_id(run_id: UUID, attempt: int) -> str:
    """Return the id of the job for an attempt of a run."""
    return f"run-{run_id}-{attempt}"


def forget_user(user_id: int) -> None:
    """Delete the throttle of a user without runs. Raises redis.RedisError."""
    limits = _limits(user_id)
    connection = rq_queue().connection
    connection.delete(limits.config_key, limits.allowed_key, limits.rate_limited_key)
    connection.srem(limits.rl_keys_key, limits.key)


@lru_cache(maxsize=1_000)  # making one takes longer than using it: it hashes RQ's scripts
def _limits(user_id: int) -> RateLimitRegistry:
    return RateLimitRegistry(f"user:{user_id}", rq_queue().connection)


def enqueue_title(run_id: UUID) -> None:
    """Enqueue the naming of a run's conversation by a model; raises redis.RedisError."""
    rq_queue("low").enqueue_call(
        func="chat.generation.jobs.make_title",
        kwargs={"run_id": str(run_id)},
        description=f"make the title of run {run_id}",
        result_ttl=0,
    )


def enqueue_notification(run_id: UUID) -> None:
    """Enqueue the notification of a run's end to its user's devices; without Redis there is none."""
    try:
        rq_queue("low").enqueue_call(
            func="chat.push.jobs.notify",
            kwargs={"run_id": str(run_id)},
            description=f"notify of the end of run {run_id}",
            result_ttl=0,
        )
    except redis.RedisError as error:
        logger.warning("run %s ends without a notification: %s", run_id, error)


def enqueue_delivery(delivery_id: UUID, attempts: int) -> None:
    """Enqueue an attempt to deliver a message of a webhook; raises redis.RedisError."""
    rq_queue("low").enqueue_call(
        func="chat.webhooks.jobs.deliver",
        kwargs={"delivery_id": str(delivery_id), "attempts": attempts},
        description=f"deliver {delivery_id}, attempt {attempts + 1}",
        result_ttl=0,
    )


def enqueue_mcp(job: str, **values: int | str) -> None:
    """Enqueue one of the jobs of chat.tools.mcp.jobs; raises redis.RedisError."""
    rq_queue("low").enqueue_call(
        func=f"chat.tools.mcp.jobs.{job}",
        kwargs=values,
        description=f"MCP: {job} {' '.join(map(str, values.values()))}",
        result_ttl=0,
    )


def enqueue_index() -> None:
    """Enqueue the indexing of messages, unless such a job is waiting; raises redis.RedisError."""
    waiting = rq_queue("index")
    if INDEX_JOB not in {job.func_name for job in waiting.get_jobs(length=10)}:
        waiting.enqueue_call(func=INDEX_JOB, description="index messages", result_ttl=0)


@cache
def rq_queue(name: str = QUEUE) -> Queue:
    """Return a queue."""
    # Our client instead of a new one per call, which would open a connection for each message.
    return django_rq.get_queue(name, connection=sync_client())
