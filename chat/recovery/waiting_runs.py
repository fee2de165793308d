"""Queued runs: requeues those whose job was lost, and publishes queue positions.

The sweeper calls `WaitingRuns.sweep` every two seconds. The hold of a run is extended while it waits. A
run without a queue position is enqueued again: Redis lost its data or was unreachable when the run
was stored, or a worker died between taking the job and claiming the run. A place that a dead worker's run
had at a provider is given to the next run that waits for it. The followers of all other
runs receive their position.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import datetime, timedelta
from uuid import UUID

from django.db.models import Q

from billing.metering import settlement
from chat.models import Provider, Run
from chat.runs import approve, queue
from chat.runs.describe import waiting_event
from chat.streaming import groups, places
from chatproject.lib import db
from chatproject.lib.batches import SetAside
from chatproject.lib.pubsub.layer import publish_all

logger = logging.getLogger(__name__)

# A run younger than this has its position from `run.queued`.
MIN_AGE = timedelta(seconds=1)

# How long a run may lack a position: while it is being stored, or between a worker's taking the job
# and its claim. A run enqueued again although a worker is taking it is still claimed once.
REQUEUE_AFTER = timedelta(seconds=6)

BATCH = 1_000  # runs of one sweep; a longer queue takes several sweeps


class WaitingRuns:
    """A round over all queued runs, BATCH at a time, with the times since when runs lack a position."""

    def __init__(self) -> None:
        self._after: tuple[datetime, UUID] | None = None  # where the next sweep continues
        self._missing: dict[UUID, datetime] = {}
        self._missing_before: dict[UUID, datetime] = {}  # at the end of the last round
        self._set_aside = SetAside()

    def sweep(self, now: datetime) -> None:
        """Process the next BATCH of queued runs. Raises redis.RedisError."""
        self._serve(now)
        if self._set_aside.is_due("approvals", now):
            with self._set_aside.apart("approvals", "the expiry of approvals", now):
                approve.expire(now)
        runs = self._next(now)
        if not runs:
            return
        for run_id in settlement.expiring([run.pk for run in runs], now):
            row = ("hold", run_id)
            if self._set_aside.is_due(row, now):
                with self._set_aside.apart(row, f"the hold of run {run_id}", now):
                    db.money_transaction(settlement.extend, run_id, now)
        runs = [run for run in runs if run.waits_until is None]  # others wait for their users
        positions = queue.positions(runs)
        events = []
        for run in runs:
            if run.pk in positions:
                with self._set_aside.apart(run.pk, f"the position of run {run.pk}", now):
                    event = waiting_event(run, positions[run.pk]).encode()
                    events.append((groups.run_group(run.pk), event))
        publish_all(events)
        self._requeue([run for run in runs if run.pk not in positions], now)

    def _serve(self, now: datetime) -> None:
        """Enqueue the runs that a provider has free places for."""
        providers = places.providers_with_waiting_runs()
        if not providers:
            return
        limits = dict(Provider.objects.filter(pk__in=providers).values_list("pk", "concurrency"))
        for provider_id in providers:
            row = ("provider", provider_id)
            if self._set_aside.is_due(row, now):
                with self._set_aside.apart(row, f"the queue of provider {provider_id}", now):
                    # One that was deleted has no limit: its runs now have another provider.
                    queue.serve_waiting(provider_id, limits.get(provider_id))

    def _next(self, now: datetime) -> list[Run]:
        queued = Run.objects.filter(status=Run.Status.QUEUED, queued_at__lt=now - MIN_AGE)
        if self._after is None:
            self._missing_before, self._missing = self._missing, {}
        else:
            moment, run_id = self._after
            queued = queued.filter(Q(queued_at__gt=moment) | Q(queued_at=moment, pk__gt=run_id))
        runs = list(
            queued.order_by("queued_at", "pk")
            .select_related("user")
            .only("attempt", "user__plan", "queued_at", "waits_until")[:BATCH]
        )
        self._after = (runs[-1].queued_at, runs[-1].pk) if len(runs) == BATCH else None
        return runs

    def _requeue(self, missing: Sequence[Run], now: datetime) -> None:
        overdue = []
        for run in missing:
            since = self._missing_before.get(run.pk, now)
            if now - since >= REQUEUE_AFTER:
                overdue.append(run)
            else:
                self._missing[run.pk] = since
        # A run whose job still exists was taken by a worker, so it was the next. Without a job the
        # queue itself was lost.
        taken = queue.known(overdue)
        for run in overdue:
            row = ("job", run.pk)
            if self._set_aside.is_due(row, now):
                with self._set_aside.apart(row, f"the job of run {run.pk}", now):
                    queue.enqueue(run, at_front=run.pk in taken)
                    logger.warning("run %s had no queue position and is enqueued again", run.pk)
