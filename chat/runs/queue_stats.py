"""Queue statistics for the staff dashboard."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from django.db.models import Count, Min, Q

from chat.models import Run
from chat.runs import queue

TOP = 20  # listed users


@dataclass(frozen=True, slots=True)
class UserFigures:
    """The active runs of one user: running, queued, and throttled behind the user's other runs."""

    user_id: int
    email: str
    running: int
    queued: int
    throttled: int


@dataclass(frozen=True, slots=True)
class QueueFigures:
    """Statistics of the queue; times in seconds, None without a measurement.

    `queued` runs wait for a worker, `throttled` ones for other runs of their user, `waiting` ones for a
    provider whose concurrency limit is reached. `oldest_wait` is the longest wait so far, `service_time` the mean from claim to end, and `expected_wait` the wait
    of a new message of a user without other runs. `users` are the TOP with the most active runs.
    """

    queued: int
    throttled: int
    waiting: int
    running: int
    oldest_wait: float | None
    service_time: float | None
    expected_wait: float | None
    users: list[UserFigures]
    workers: list[queue.Worker]


@dataclass(frozen=True, slots=True)
class ActiveRuns:
    """Active runs as the rows have them: running ones, and the longest wait of a queued one."""

    running: int
    oldest_wait: float | None


def active_runs(now: datetime) -> ActiveRuns:
    """Count running runs, and measure the longest wait so far in seconds; None without a queue."""
    is_queued = Q(status=Run.Status.QUEUED)
    totals = Run.objects.active().aggregate(
        running=Count("pk", filter=~is_queued), oldest=Min("queued_at", filter=is_queued)
    )
    oldest = totals["oldest"]
    return ActiveRuns(totals["running"], (now - oldest).total_seconds() if oldest else None)


def queue_figures(now: datetime) -> QueueFigures:
    """Count queued, throttled and running runs. Raises redis.RedisError."""
    active, is_queued = Run.objects.active(), Q(status=Run.Status.QUEUED)
    runs = active_runs(now)
    users = list(
        active.values("user_id", "user__email")
        .annotate(queued=Count("pk", filter=is_queued), running=Count("pk", filter=~is_queued))
        .order_by("-queued", "-running", "user_id")[:TOP]
    )
    throttled = queue.throttled([user["user_id"] for user in users])
    length = queue.length()
    throughput = length.throughput
    return QueueFigures(
        queued=length.queued,
        throttled=length.throttled,
        waiting=length.waiting,
        running=runs.running,
        oldest_wait=runs.oldest_wait,
        service_time=throughput.service if throughput else None,
        expected_wait=length.expected_wait(),
        users=[
            UserFigures(
                user_id=user["user_id"],
                email=user["user__email"],
                running=user["running"],
                queued=max(0, user["queued"] - behind),
                throttled=behind,
            )
            for user, behind in zip(users, throttled, strict=True)
        ],
        workers=queue.workers(now),
    )
