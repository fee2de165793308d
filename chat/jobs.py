"""The queue of chat: what is put into it, and the entry points that workers call.

Ids, never objects, travel in a job. This module, the clock and the worker are the only ones that
know RQ.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import cache
from uuid import UUID

import django_rq
from rq.job import Job, JobStatus
from rq.queue import Queue

from chat.models import Run
from chatproject.lib.redis import sync_client

QUEUE = "chat"

# How long a worker that took a job may need until it claims the run.
CLAIM_PATIENCE = timedelta(seconds=30)


async def generate(run_id: str, attempt: int) -> None:
    """Make the reply of a run; `attempt` is the number that the claim must find free."""
    # Imported by the worker alone: the provider's library costs a web process 60 MB.
    from chat import generate

    await generate.run(UUID(run_id), attempt)


def enqueue(run: Run) -> None:
    """Put a queued run's next attempt into the queue; once more does no harm (see generate.claim)."""
    attempt = run.attempt + 1
    _queue().enqueue_call(
        func="chat.jobs.generate",
        kwargs={"run_id": str(run.id), "attempt": attempt},
        job_id=job_id(run.id, attempt),
        description=f"run {run.id}, attempt {attempt}",
    )


def waiting() -> int:
    """How many runs wait for a worker. Raises redis.RedisError when the queue is not reachable."""
    return _queue().count


def position(run: Run) -> int:
    """A run's place in line (1: the next); 0 when it is not in line, as a worker is taking it."""
    place = _queue().get_job_position(job_id(run.id, run.attempt + 1))
    return 0 if place is None else place + 1


def is_underway(run: Run) -> bool:
    """Whether a job for a queued run's next attempt is in line or with a worker."""
    queue = _queue()
    job = Job.fetch_many(
        [job_id(run.id, run.attempt + 1)], connection=queue.connection, serializer=queue.serializer
    )[0]
    if job is None:
        return False
    status = job.get_status(refresh=False)
    if status == JobStatus.QUEUED:
        # The job's own record says so, but only the list is what workers read.
        return queue.get_job_position(job.id) is not None
    if status == JobStatus.STARTED:
        # A worker claims a run in the moment in which it takes the job, unless it died just there.
        started = job.started_at
        return started is not None and datetime.now(UTC) - started < CLAIM_PATIENCE
    return False


def job_id(run_id: UUID, attempt: int) -> str:
    """The name of the job that makes an attempt of a run."""
    return f"run-{run_id}-{attempt}"


@cache
def _queue() -> Queue:
    # Enqueued at once, not on commit: runs.start has committed, and wants to know the position.
    # Our client instead of a new one per call, which would open a connection for each message.
    return django_rq.get_queue(QUEUE, commit_mode="auto", connection=sync_client())
