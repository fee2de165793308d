"""The sweeper: recovers runs whose worker died, so that no conversation is ever stuck.

The clock calls `Sweeper.sweep` every second. A running run whose worker died has no lease: it gets
another attempt or, when its attempts are used up, ends as failed with the text that its log holds,
which is charged. A run whose worker died just after storing its end still has a lease: its last event is
published here. Queued runs are the subject of waiting_runs.py.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import datetime, timedelta
from uuid import UUID

import redis
from django.conf import settings
from django.utils import timezone

from billing.models import Hold
from chat import errors, protocol
from chat.models import Run
from chat.recovery.waiting_runs import WaitingRuns
from chat.runs import finish, handover, queue
from chat.streaming import log as run_log
from chat.streaming.leases import (
    LEASE_SECONDS,
    RENEW_SECONDS,
    accepted_attempts,
    leased_runs,
    stop_requested,
)
from chatproject.lib import metrics
from chatproject.lib.batches import SetAside, raise_outage

logger = logging.getLogger(__name__)

LEASE = timedelta(seconds=LEASE_SECONDS)

# How long a lease must be missing before its run is taken from its worker. A living worker writes a
# lease that Redis lost again within RENEW_SECONDS, so a flush of Redis ends no run.
MISSING = timedelta(seconds=1.5 * RENEW_SECONDS)

# A worker publishes the end of a run and deletes its lease at once after the COMMIT that ends the run.
PUBLISH_TIME = timedelta(seconds=1.5)

WAITING_EVERY = timedelta(seconds=1.9)  # how often queued runs are processed: every second sweep

BATCH = 100  # runs of one transaction


class Sweeper:
    """Stores between sweeps since when leases are missing and since when Redis answers."""

    def __init__(self) -> None:
        self._waiting = WaitingRuns()
        self._waiting_at: datetime | None = None
        self._missing: dict[UUID, datetime] = {}
        self._set_aside = SetAside()
        self._ends_set_aside = SetAside()
        # Redis may have been unreachable before the start: as after an outage, workers get a lease's time.
        self._redis_since: datetime | None = None

    def sweep(self, now: datetime) -> None:
        """Check all active runs once. Raises redis.RedisError while Redis is unreachable.

        An error with one run is logged once, and the run is tried again after a pause that grows.
        """
        steps = [self._sweep_running, self._publish_ends]
        if self._waiting_at is None or now - self._waiting_at >= WAITING_EVERY:
            self._waiting_at = now
            steps.append(self._waiting.sweep)
        for step in steps:
            try:
                step(now)
            except redis.RedisError:
                self._redis_since = None
                raise
            except Exception as error:
                raise_outage(error)
                logger.exception("a part of the sweep failed")

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
        # After an outage the workers have one lease's time to write their leases again.
        if now - self._redis_since >= LEASE:
            lost = [pk for pk, since in self._missing.items() if now - since >= MISSING]
            self._set_aside.forget_others({*lost})
            due = [(pk, running[pk]) for pk in lost if self._set_aside.is_due(pk, now)]
            recover(due, self._set_aside, now)

    def _publish_ends(self, now: datetime) -> None:
        """Publish the ends of runs whose worker died between storing and publishing them.

        A lease outlives its worker for some seconds, and only the worker deletes it.
        """
        ended = Run.objects.filter(
            ended_at__gt=now - LEASE - PUBLISH_TIME, ended_at__lt=now - PUBLISH_TIME
        )
        for run_id in leased_runs([*ended.values_list("pk", flat=True)]):
            with self._ends_set_aside.apart(run_id, f"the end of run {run_id}", now):
                event = finish.read(run_id)
                if event is not None:
                    logger.warning(
                        "run %s ended with its worker; its last event is published now", run_id
                    )
                    run_log.publish_end(event)


def recover(
    lost: Sequence[tuple[UUID, int]],
    set_aside: SetAside | None = None,
    now: datetime | None = None,
) -> None:
    """Give runs whose worker died another attempt, or end them. Raises redis.RedisError.

    `lost` has the id of each run and its lost attempt. A run ends when its attempts are used up, or when
    a user has asked it to stop meanwhile. A run that another transaction has locked is left to the next
    sweep. After an error in a batch each of its runs is tried alone.
    """
    set_aside = SetAside() if set_aside is None else set_aside  # an empty one is false
    now = now or timezone.now()
    for first in range(0, len(lost), BATCH):
        batch = lost[first : first + BATCH]
        try:
            _recover(batch)
        except Exception as error:  # noqa: BLE001  each run's own is logged below
            raise_outage(error)
            for one in batch:
                with set_aside.apart(one[0], f"the recovery of run {one[0]}", now):
                    _recover([one])


def _recover(lost: Sequence[tuple[UUID, int]]) -> None:
    run_ids = [run_id for run_id, _ in lost]
    stopped, accepted = stop_requested(run_ids), accepted_attempts(run_ids)
    streamed = Run.objects.select_related("model", "answered_by").filter(
        pk__in=run_ids, model_snapshot__api__streamed=True
    )
    of_api = {run.pk: run for run in streamed}
    # An attempt that ended with a question to its user is not lost.
    waits = dict(Run.objects.filter(pk__in=run_ids, waits__gt=0).values_list("pk", "waits"))
    again = []
    for (run_id, attempt), written in zip(lost, run_log.read_replies(lost), strict=True):
        one = handover.LostAttempt(
            run_id,
            attempt,
            written.text,
            written.reasoning,
            is_accepted=accepted.get(run_id) == attempt,
            tools=written.tools,
        )
        run = of_api.get(run_id)
        is_last = run is not None and not handover.can_begin_again(run, one.text, one.tools)
        if run_id in stopped or attempt >= settings.RUN_ATTEMPTS + waits.get(run_id, 0) or is_last:
            _end(one, is_stopped=run_id in stopped)
        else:
            again.append(one)
    if not again:
        return
    for run in handover.hand_over(again):
        metrics.ATTEMPTS_LOST.inc()
        logger.warning("run %s lost its worker; attempt %d follows", run.pk, run.attempt + 1)
        queue.enqueue(run)


def _end(lost: handover.LostAttempt, *, is_stopped: bool) -> None:
    """End a run whose worker died, with the text that its log holds."""
    run_id, attempt = lost.run_id, lost.attempt
    run = Run.objects.only(
        "user_id", "prompt_estimate", "prefix", "prefix_reasoning", "continued"
    ).get(pk=run_id)
    # A log that Redis lost does not even have the prefix that the attempt began from.
    text = lost.text or run.prefix
    reasoning = lost.reasoning or run.prefix_reasoning
    if is_stopped:
        outcome = finish.Outcome(status=Run.Status.STOPPED, text=text, reasoning=reasoning)
    else:
        outcome = finish.failed("unavailable", errors.INTERRUPTED, text=text)
        outcome.reasoning = reasoning
    outcome.by = Hold.Resolver.SWEEPER
    outcome.usage = handover.usage_of_attempt(run, lost)
    event = finish.end(
        run_id=run_id,
        attempt=attempt,
        status=Run.Status.RUNNING,
        # Above all numbers that its worker can have published, also when Redis lost (some of) the log.
        seq=protocol.first_seq(attempt + 1),
        outcome=outcome,
    )
    if event is None:
        return  # its worker ended it first
    metrics.ATTEMPTS_LOST.inc()
    logger.warning("run %s lost its worker and was ended as %s", run_id, outcome.status)
    queue.release(run.user_id, run_id, attempt)
    run_log.publish_end(event)
