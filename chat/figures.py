"""The live queue in figures, for staff."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from django.db.models import Count, Min, Q

from chat import jobs
from chat.models import Run

TOP = 20  # users that are listed


@dataclass(frozen=True, slots=True)
class UserFigures:
    """The active runs of one user: being made, in line, and held back behind the user's own."""

    user_id: int
    email: str
    running: int
    queued: int
    held: int


@dataclass(frozen=True, slots=True)
class QueueFigures:
    """How the queue stands; times in seconds, None where nothing is known.

    `waiting` runs are in line for a worker, `held` ones behind others of their user. `oldest_wait`
    is the longest that a run waits by now, `service_time` the mean from claim to end, and
    `expected_wait` what a new message of a user with no other would wait. `users` are the TOP with
    the most active runs.
    """

    waiting: int
    held: int
    running: int
    oldest_wait: float | None
    service_time: float | None
    expected_wait: float | None
    users: list[UserFigures]
    workers: list[jobs.Worker]


def queue_figures(now: datetime) -> QueueFigures:
    """Count what waits and what is being made. Raises redis.RedisError."""
    totals = Run.objects.active().aggregate(
        running=Count("pk", filter=Q(status=Run.Status.RUNNING)),
        oldest=Min("queued_at", filter=Q(status=Run.Status.QUEUED)),
    )
    line = jobs.line()
    return QueueFigures(
        waiting=line.length,
        held=line.held,
        running=totals["running"],
        oldest_wait=(now - totals["oldest"]).total_seconds() if totals["oldest"] else None,
        service_time=line.pace.service if line.pace else None,
        expected_wait=line.pace.wait(line.length + 1) if line.pace else None,
        users=_users(),
        workers=jobs.workers(now),
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
            queued=max(0, user["queued"] - held),
            held=held,
        )
        for user, held in zip(users, jobs.held([user["user_id"] for user in users]), strict=True)
    ]
