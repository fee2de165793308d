"""Queue statistics for the staff dashboard."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from django.db.models import Count, Min, Q

from chat.models import Run
from chat.runs import queue

TOP = 20  # users that are listed


@dataclass(frozen=True, slots=True)
class UserFigures:
    """The active runs of one user: running, queued, and throttled behind the user's own."""

    user_id: int
    email: str
    running: int
    queued: int
    throttled: int


@dataclass(frozen=True, slots=True)
class QueueFigures:
    """Statistics of the queue; times in seconds, None without a measurement.

    `queued` runs wait for a worker, `throttled` ones for other runs of their user. `oldest_wait` is
    the longest wait so far, `service_time` the mean from claim to end, and `expected_wait` the wait
    of a new message of a user without other runs. `users` are the TOP with the most active runs.
    """

    queued: int
    throttled: int
    running: int
    oldest_wait: float | None
    service_time: float | None
    expected_wait: float | None
    users: list[UserFigures]
    workers: list[queue.Worker]


def queue_figures(now: datetime) -> QueueFigures:
    """Count queued, throttled and running runs. Raises redis.RedisError."""
    totals = Run.objects.active().aggregate(
        running=Count("pk", filter=Q(status=Run.Status.RUNNING)),
        oldest=Min("queued_at", filter=Q(status=Run.Status.QUEUED)),
    )
    length = queue.length()
    throughput = length.throughput
    return QueueFigures(
        queued=length.queued,
        throttled=length.throttled,
        running=totals["running"],
        oldest_wait=(now - totals["oldest"]).total_seconds() if totals["oldest"] else None,
        service_time=throughput.service if throughput else None,
        expected_wait=throughput.wait(length.queued + 1) if throughput else None,
        users=_users(),
        workers=queue.workers(now),
    )


def _users() -> list[UserFigures]:
    is_queued = Q(status=Run.Status.QUEUED)
    counts = (
        Run.objects.active()
        .values("user_id", "user__email")
        .annotate(queued=Count("pk", filter=is_queued), running=Count("pk", filter=~is_queued))
        .order_by("-queued", "-running", "user_id")[:TOP]
    )
    users = list(counts)
    return [
        UserFigures(
            user_id=user["user_id"],
            email=user["user__email"],
            running=user["running"],
            queued=max(0, user["queued"] - throttled),
            throttled=throttled,
        )
        for user, throttled in zip(
            users, queue.throttled([user["user_id"] for user in users]), strict=True
        )
    ]
