"""The times of further attempts to deliver a message."""

from __future__ import annotations

import random
from datetime import timedelta

# Seconds before each further attempt, as Standard Webhooks recommends; in all three days and three hours.
PAUSES = (5, 300, 1_800, 7_200, 18_000, 36_000, 50_400, 72_000, 86_400)
MAX_ATTEMPTS = len(PAUSES) + 1
JITTER = 0.1  # of a pause, at most added, so that messages which failed together are spread


def pause(number: int, retry_after: str = "") -> timedelta:
    """Return the time from a failed attempt, the first is 1, to the next: longer if its receiver asked for it.

    `retry_after` is its header, of which only seconds are read, up to the longest pause.
    """
    seconds = float(PAUSES[min(number, len(PAUSES)) - 1])
    if retry_after.isascii() and retry_after.isdecimal() and len(retry_after) <= 9:
        seconds = max(seconds, min(float(retry_after), float(PAUSES[-1])))
    return timedelta(seconds=seconds * (1 + random.uniform(0, JITTER)))  # noqa: S311 # spreads load
