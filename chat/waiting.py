"""Those who wait for a worker: none is forgotten, and each is told how the line moves.

The sweeper calls `Waiting.sweep` every two seconds. What a run holds is kept for as long as it waits.
A run without a place in line is queued again: Redis lost its memory or was away when the run was
stored, or a worker died between taking the job and claiming the run. All others hear their position.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import datetime, timedelta
from uuid import UUID

from django.db.models import Q

from billing import metering
from chat import events, jobs
from chat.models import Run
from chatproject.lib import db
from chatproject.lib.pubsub.layer import publish_all

logger = logging.getLogger(__name__)

# A run that waits for less needs nobody: it has just been told its place.
TOLD_AFTER = timedelta(seconds=1)

# How long a run may be without a place: while it is being stored, or between a worker's taking the
# job and its claim. What is queued again although a worker is taking it is claimed once.
UNPLACED = timedelta(seconds=6)

BATCH = 1_000  # runs of one sweep; with more of them waiting it takes several to see each


class Waiting:
    """Remembers where it is in its round of all waiting runs, and since when runs have no place."""

    def __init__(self) -> None:
        self._after: tuple[datetime, UUID] | None = None  # where the next sweep goes on
        self._unplaced: dict[UUID, datetime] = {}
        self._unplaced_before: dict[UUID, datetime] = {}  # as the last round left it

    def sweep(self, now: datetime) -> None:
        """Look at the next BATCH of waiting runs. Raises redis.RedisError."""
        runs = self._next(now)
        if not runs:
            return
        for run_id in metering.fading([run.pk for run in runs], now):
            try:
                db.money_transaction(metering.keep, run_id, now)
            except db.MoneyBusy:
                logger.warning("the hold of run %s is kept at a later sweep", run_id)
        places = jobs.places(runs)
        _tell(runs, places)
        self._queue_again([run for run in runs if run.pk not in places], now)

    def _next(self, now: datetime) -> list[Run]:
        queued = Run.objects.filter(status=Run.Status.QUEUED, queued_at__lt=now - TOLD_AFTER)
        if self._after is None:
            self._unplaced_before, self._unplaced = self._unplaced, {}
        else:
            moment, run_id = self._after
            queued = queued.filter(Q(queued_at__gt=moment) | Q(queued_at=moment, pk__gt=run_id))
        runs = list(
            queued.order_by("queued_at", "pk").only("attempt", "user_id", "queued_at")[:BATCH]
        )
        self._after = (runs[-1].queued_at, runs[-1].pk) if len(runs) == BATCH else None
        return runs

    def _queue_again(self, unplaced: Sequence[Run], now: datetime) -> None:
        overdue = []
        for run in unplaced:
            since = self._unplaced_before.get(run.pk, now)
            if now - since >= UNPLACED:
                overdue.append(run)
            else:
                self._unplaced[run.pk] = since
        # What a worker had taken was the next; the others are all that there was, in their order.
        taken = jobs.known(overdue)
        for run in overdue:
            logger.warning("run %s had no place in line and is queued again", run.pk)
            jobs.enqueue(run, at_front=run.pk in taken)


def _tell(runs: Sequence[Run], places: dict[UUID, jobs.Place]) -> None:
    """Tell the followers of each run its place, in one go."""
    publish_all(
        (events.run_group(run.pk), _event(run, places[run.pk]).encode())
        for run in runs
        if run.pk in places
    )


def _event(run: Run, place: jobs.Place) -> events.RunWaiting:
    return events.RunWaiting(
        run=run.pk,
        attempt=run.attempt + 1,
        position=place.position,
        eta=place.eta,
        held=place.is_held,
    )
