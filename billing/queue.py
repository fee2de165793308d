"""The queue of billing: one function for each kind of job.

Ids, never objects, travel in a job. The work of a lost job is found again by `payments.poller` in
Postgres.
All functions raise redis.RedisError while the queue is unreachable.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import cache
from uuid import UUID

import django_rq
from rq.job import Job, JobStatus
from rq.queue import Queue

from chatproject.lib import log_context
from chatproject.lib.redis.clients import sync_client

QUEUE = "billing"

TASK_SECONDS = 600  # time limit of a scheduled task


def enqueue_event(event_id: int, attempt: int) -> None:
    """Enqueue the processing of a stored webhook; `attempt` counts from 0."""
    _enqueue("process_event", event_id=event_id, attempt=attempt)


def enqueue_sync(order_id: UUID) -> None:
    """Enqueue a sync of an order with its provider."""
    _enqueue("sync_order", order_id=str(order_id))


def enqueue_refund(refund_id: UUID) -> None:
    """Enqueue a sync of a refund with its provider."""
    _enqueue("ask_refund", refund_id=str(refund_id))


def enqueue_top_up(account_id: int) -> None:
    """Enqueue the check whether an account needs an automatic top-up."""
    _enqueue("top_up", account_id=account_id)


def enqueue_forget(user_id: int) -> None:
    """Enqueue the removal of a saved payment method at its provider."""
    _enqueue("forget_method", user_id=user_id)


def enqueue_sandbox(payment_id: str, event_type: str) -> None:
    """Enqueue the delivery of a webhook by the sandbox's bank."""
    _enqueue("tell_of_sandbox", payment_id=payment_id, event_type=event_type)


def _enqueue(name: str, **arguments: str | int) -> None:
    _queue().enqueue_call(
        func=f"billing.jobs.{name}",
        kwargs=arguments,
        meta=log_context.carried(),
        description=" ".join([name.replace("_", " "), *map(str, arguments.values())]),
    )


def enqueue_task(name: str) -> None:
    """Enqueue a task of billing.schedule, unless it is already queued or running."""
    queue = _queue()
    job_id = f"task-{name.replace(' ', '-')}"
    [found] = Job.fetch_many([job_id], connection=queue.connection, serializer=queue.serializer)
    if found is not None:
        if is_underway(found):
            return
        # The previous job's record would otherwise be listed together with the new job.
        found.delete()
    queue.enqueue_call(
        func="billing.jobs.run_task",
        kwargs={"name": name},
        job_id=job_id,
        timeout=TASK_SECONDS,
        description=name,
    )


def is_underway(job: Job) -> bool:
    """Return whether a task's job is queued, or running on a worker that may still be alive."""
    status = job.get_status(refresh=False)
    if status == JobStatus.QUEUED:
        # The job's own record may be stale: workers read only the queue's list.
        return _queue().get_job_position(job.id) is not None
    if status == JobStatus.STARTED:
        # A living worker stops a job at its timeout: an older job has lost its worker.
        started = job.started_at
        max_age = timedelta(seconds=TASK_SECONDS + 60)
        return started is not None and datetime.now(UTC) - started < max_age
    return False


@cache
def _queue() -> Queue:
    # "auto" enqueues at once: callers with a transaction call this module after their commit.
    return django_rq.get_queue(QUEUE, commit_mode="auto", connection=sync_client())
