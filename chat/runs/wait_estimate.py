"""Throughput of the workers, as measured, and the expected wait of a queued run.

The clock measures every few seconds and stores the result in Redis, where a new message reads it in
the same round trip as its queue position. Without a measurement there is no estimate.
"""

from __future__ import annotations

from typing import Any

import msgspec

from chat.models import Run

KEY = "queue:pace"
TTL = 15  # seconds that a measurement is valid; the clock makes a new one every EVERY
EVERY = 4.0

SAMPLE = 200  # the newest runs that have ended

# Seconds after which a refused client may try again: without a measurement, and at least.
RETRY_AFTER = 5.0
MIN_RETRY_AFTER = 1.0


class Throughput(msgspec.Struct, frozen=True):
    """`service` is the mean time from claim to end in seconds, `running` the number of running runs.

    `capacity` is the number of runs that the living workers process at once.
    """

    service: float
    running: int
    capacity: int

    def wait(self, position: int) -> float | None:
        """Return the expected seconds until a worker takes the run at a position (1: the next)."""
        if self.capacity < 1:
            return None  # no worker is running, and none may come
        ahead = position - max(0, self.capacity - self.running)
        return round(max(0, ahead) * self.service / self.capacity, 1)

    def wait_throttled(self, position: int, queued: int, concurrency: int) -> float | None:
        """Return the same for a throttled run, at a position among its user's throttled runs.

        It goes to the end of the queue, behind `queued` runs, when as many of the user's runs have
        ended, of which `concurrency` are made at the same time.
        """
        in_queue = self.wait(queued + 1)
        if in_queue is None:
            return None
        return round(position * self.service / concurrency + in_queue, 1)


def measure(capacity: int) -> Throughput | None:
    """Measure the throughput from the newest runs; None before the first one has ended."""
    newest = (
        Run.objects.filter(ended_at__isnull=False, started_at__isnull=False)
        .order_by("-id")
        .values_list("started_at", "ended_at")[:SAMPLE]
    )
    times = [(ended - started).total_seconds() for started, ended in newest if started and ended]
    if not times:
        return None
    return Throughput(
        service=max(0.0, sum(times) / len(times)),
        running=Run.objects.filter(status=Run.Status.RUNNING).count(),
        capacity=capacity,
    )


def decode(stored: Any) -> Throughput | None:
    """Decode the value that Redis returned for KEY."""
    return None if stored is None else msgspec.json.decode(stored, type=Throughput)


def retry_after(wait: float | None) -> float:
    """Return after how many seconds a refused client should try again."""
    return RETRY_AFTER if wait is None else max(MIN_RETRY_AFTER, wait)
