"""How fast replies are made, as measured, and what it means for those that wait.

The clock measures every few seconds and puts the result into Redis, where a new message finds it in
the same round trip as its place in line. When nothing is known, no wait is foretold.
"""

from __future__ import annotations

from typing import Any

import msgspec
from django.conf import settings

from chat.models import Run

KEY = "queue:pace"
SECONDS = 15  # that a measurement holds; the clock makes a new one every EVERY
EVERY = 4.0

SAMPLE = 200  # the newest runs that have ended

# Seconds: what somebody who was refused is told when nothing is known, and the least.
RETRY_AFTER = 5.0
LEAST_RETRY_AFTER = 1.0


class Pace(msgspec.Struct, frozen=True):
    """`service` is the mean time from claim to end in seconds, `running` how many runs are being made.

    `capacity` is how many the living workers make at once.
    """

    service: float
    running: int
    capacity: int

    def wait(self, position: int) -> float | None:
        """The expected seconds until a worker takes the run at this place in line (1: the next)."""
        if self.capacity < 1:
            return None  # no worker is there, and nobody knows when one will be
        ahead = position - max(0, self.capacity - self.running)
        return round(max(0, ahead) * self.service / self.capacity, 1)

    def wait_held(self, position: int, line: int) -> float | None:
        """The same for a run that its user's other runs hold back: its place among those held back.

        It goes to the end of the line when so many of the user's runs have ended.
        """
        in_line = self.wait(line + 1)
        if in_line is None:
            return None
        return round(position * self.service / settings.USER_CONCURRENCY + in_line, 1)


def measured(capacity: int) -> Pace | None:
    """The pace as the newest runs show it; None before the first one has ended."""
    newest = (
        Run.objects.filter(ended_at__isnull=False, started_at__isnull=False)
        .order_by("-id")
        .values_list("started_at", "ended_at")[:SAMPLE]
    )
    times = [(ended - started).total_seconds() for started, ended in newest if started and ended]
    if not times:
        return None
    return Pace(
        service=max(0.0, sum(times) / len(times)),
        running=Run.objects.filter(status=Run.Status.RUNNING).count(),
        capacity=capacity,
    )


def decode(stored: Any) -> Pace | None:
    """Read what Redis answered for KEY."""
    return None if stored is None else msgspec.json.decode(stored, type=Pace)


def retry_after(wait: float | None) -> float:
    """What to tell somebody who was refused: after so many seconds trying again may help."""
    return RETRY_AFTER if wait is None else max(LEAST_RETRY_AFTER, wait)
