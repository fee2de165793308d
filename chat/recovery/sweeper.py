"""Finds the runs that nobody makes any more, so that no conversation is ever stuck.

The clock calls `Sweeper.sweep` every second. A running run whose worker died has no lease: it gets another
attempt, or ends as failed when its attempts are used up, with what its log holds as the partial text,
which is what it is charged for. A run that ended in the moment in which its worker died has a lease still:
its followers are told the end that the worker could not tell. Those that wait are waiting.py's.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from uuid import UUID

import redis
from django.conf import settings

from billing.models import Hold
from chat import errors, protocol
from chat.models import Run
from chat.recovery.waiting_runs import Waiting
from chat.runs import finish, handover, queue
from chat.streaming import log as run_log
from chat.streaming.leases import LEASE_SECONDS, RENEW_SECONDS, leased_runs, stop_requested
from chatproject.lib import db

logger = logging.getLogger(__name__)

LEASE = timedelta(seconds=LEASE_SECONDS)

# How long a lease must have been gone before its run is taken from its worker. A living worker takes a
# lease that Redis lost again within RENEW_SECONDS, so that a flush of Redis ends no run.
MISSING = timedelta(seconds=1.5 * RENEW_SECONDS)

# A worker tells the end of a run and gives its lease away, at once after the row says that it is over.
UNTOLD = timedelta(seconds=1.5)

LINE_EVERY = timedelta(seconds=1.9)  # how often those that wait are looked at: every second sweep

BATCH = 100  # runs of one transaction


class Sweeper:
    """Remembers between sweeps since when leases are missing and since when Redis answers."""

    def __init__(self) -> None:
        self._waiting = Waiting()
        self._line_at: datetime | None = None
        self._missing: dict[UUID, datetime] = {}
        # Just started, it cannot know whether Redis was away: like after an outage, it waits.
        self._redis_since: datetime | None = None

    def sweep(self, now: datetime) -> None:
        """Look at all active runs once. Raises redis.RedisError when Redis does not answer."""
        try:
            self._sweep_running(now)
            publish_ends(now)
            if self._line_at is None or now - self._line_at >= LINE_EVERY:
                self._line_at = now
                self._waiting.sweep(now)
        except redis.RedisError:
            self._redis_since = None
            raise

    def _sweep_running(self, now: datetime) -> None:
        running = dict(
            Run.objects.filter(status=Run.Status.RUNNING, started_at__lt=now - LEASE)
            .order_by("started_at")
            .values_list("pk", "attempt")
        )
        leased = leased_runs([*running])
        if self._redis_since is None:
            self._redis_since = now
        self._missing = {pk: self._missing.get(pk, now) for pk in running if pk not in leased}
        # After an outage the workers come first: they have one lease's time to take theirs again.
        if now - self._redis_since >= LEASE:
            lost = [pk for pk, since in self._missing.items() if now - since >= MISSING]
            recover([(pk, running[pk]) for pk in lost])


def recover(lost: Sequence[tuple[UUID, int]]) -> None:
    """Give runs whose worker is gone another attempt, or end them. Raises redis.RedisError.

    `lost` names each with the attempt that it lost. It ends when its attempts are used up, or when
    somebody has asked it to stop meanwhile. What another one has in work is left to the next sweep.
    """
    for some in _batches(lost):
        try:
            _recover(some)
        except db.MoneyBusy:
            logger.warning("%d runs are looked at again at the next sweep", len(some))


def _batches(lost: Sequence[tuple[UUID, int]]) -> Iterator[Sequence[tuple[UUID, int]]]:
    for first in range(0, len(lost), BATCH):
        yield lost[first : first + BATCH]


def _recover(lost: Sequence[tuple[UUID, int]]) -> None:
    stopped = stop_requested([run_id for run_id, _ in lost])
    again = []
    for (run_id, attempt), written in zip(lost, run_log.all_written(lost), strict=True):
        if run_id in stopped or attempt >= settings.RUN_ATTEMPTS:
            _end(run_id, attempt, written, is_stopped=run_id in stopped)
        else:
            again.append(handover.LostAttempt(run_id, attempt, written.text, written.reasoning))
    if not again:
        return
    for run in handover.hand_over(again):
        logger.warning("run %s lost its worker; attempt %d follows", run.pk, run.attempt + 1)
        queue.enqueue(run)


def _end(run_id: UUID, attempt: int, written: run_log.Written, *, is_stopped: bool) -> None:
    """End a run whose worker is gone, with the text that its log holds."""
    run = Run.objects.only("user_id", "prompt_estimate", "prefix", "prefix_reasoning").get(
        pk=run_id
    )
    # A log that Redis lost does not even have what the attempt began from.
    text = written.text or run.prefix
    reasoning = written.reasoning or run.prefix_reasoning
    if is_stopped:
        outcome = finish.Outcome(status=Run.Status.STOPPED, text=text, reasoning=reasoning)
    else:
        outcome = finish.failed("unavailable", errors.INTERRUPTED, text=text)
        outcome.reasoning = reasoning
    outcome.by = Hold.Resolver.SWEEPER
    if text or reasoning:
        outcome.usage = finish.counted_usage(run.prompt_estimate, text, reasoning)
    event = finish.end(
        run_id=run_id,
        attempt=attempt,
        status=Run.Status.RUNNING,
        # Above all that its worker can have told, also when Redis has lost (some of) the log.
        seq=protocol.first_seq(attempt + 1),
        outcome=outcome,
    )
    if event is None:
        return  # its worker was quicker after all
    logger.warning("run %s lost its worker and was ended as %s", run_id, outcome.status)
    queue.release(run.user_id, run_id, attempt)
    run_log.publish_end(event)


def publish_ends(now: datetime) -> None:
    """Tell the ends of runs whose worker died between storing and telling it.

    A lease outlives its worker for some seconds, and nobody but the worker gives it away.
    """
    ended = Run.objects.filter(ended_at__gt=now - LEASE - UNTOLD, ended_at__lt=now - UNTOLD)
    for run_id in leased_runs([*ended.values_list("pk", flat=True)]):
        event = finish.read(run_id)
        if event is not None:
            logger.warning("run %s ended with its worker; its followers are told now", run_id)
            run_log.publish_end(event)
