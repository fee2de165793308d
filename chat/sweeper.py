"""Finds the runs that nobody makes any more, so that no conversation is ever stuck.

The clock calls `Sweeper.sweep` every two seconds. A running run whose worker died has no lease: it
ends as failed, with what its log holds as the partial text, which is what it is charged for. A queued run whose job is gone (Redis
lost its memory, or was away when the run was stored) is put into the queue again.
"""

from __future__ import annotations

import logging
from datetime import datetime, timedelta
from uuid import UUID

import redis

from billing import metering
from billing.models import Hold
from chat import ending, events, jobs, runlog
from chat.models import Run
from chatproject.lib import db

logger = logging.getLogger(__name__)

LEASE = timedelta(seconds=runlog.LEASE_SECONDS)

# How long a lease must have been gone before its run is given up. A living worker takes a lease
# that Redis lost again within RENEW_SECONDS, so that a flush of Redis ends no run.
MISSING = timedelta(seconds=1.5 * runlog.RENEW_SECONDS)

# How long a queued run may be without a job: the time between the commit and the queue.
UNQUEUED = timedelta(seconds=5)

BATCH = 500  # runs of one sweep


class Sweeper:
    """Remembers between sweeps since when leases are missing and since when Redis answers."""

    def __init__(self) -> None:
        self._missing: dict[UUID, datetime] = {}
        # Just started, it cannot know whether Redis was away: like after an outage, it waits.
        self._redis_since: datetime | None = None

    def sweep(self, now: datetime) -> None:
        """Look at all active runs once. Raises redis.RedisError when Redis does not answer."""
        try:
            self._sweep_running(now)
            self._sweep_queued(now)
        except redis.RedisError:
            self._redis_since = None
            raise

    def _sweep_running(self, now: datetime) -> None:
        running = list(
            Run.objects.filter(status=Run.Status.RUNNING, started_at__lt=now - LEASE)
            .order_by("started_at")
            .values_list("pk", "attempt")[:BATCH]
        )
        leased = runlog.leased(pk for pk, _ in running)
        if self._redis_since is None:
            self._redis_since = now
        # After an outage the workers come first: they have one lease's time to take theirs again.
        may_end = now - self._redis_since >= LEASE
        missing = {pk: self._missing.get(pk, now) for pk, _ in running if pk not in leased}
        for pk, attempt in running:
            if pk in missing and may_end and now - missing[pk] >= MISSING:
                give_up(pk, attempt)
                del missing[pk]
        self._missing = missing

    def _sweep_queued(self, now: datetime) -> None:
        queued = Run.objects.filter(status=Run.Status.QUEUED, queued_at__lt=now - UNQUEUED)
        runs = list(queued.order_by("queued_at")[:BATCH])
        for run_id in metering.fading([run.pk for run in runs], now):
            db.money_transaction(metering.keep, run_id, now)
        for run in runs:
            if not jobs.is_underway(run):
                logger.warning("run %s had no job and is queued again", run.id)
                jobs.enqueue(run)


def give_up(run_id: UUID, attempt: int) -> None:
    """End a run whose worker is gone as failed, with the text that its log holds."""
    written = runlog.written(run_id, attempt)
    outcome = ending.failed("unavailable", events.INTERRUPTED, text=written.text)
    outcome.reasoning = written.reasoning
    outcome.by = Hold.Resolver.SWEEPER
    if written.text or written.reasoning:
        prompt_tokens = Run.objects.values_list("prompt_estimate", flat=True).get(pk=run_id)
        outcome.usage = ending.counted_usage(prompt_tokens, written.text, written.reasoning)
    event = ending.end(
        run_id=run_id,
        attempt=attempt,
        status=Run.Status.RUNNING,
        seq=written.seq + 1,
        outcome=outcome,
    )
    if event is None:
        return  # its worker was quicker after all
    logger.warning("run %s lost its worker and was ended", run_id)
    runlog.publish_end(event)
