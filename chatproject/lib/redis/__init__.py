"""Redis: clients with time limits, and a connection of our own for its busiest uses."""

from __future__ import annotations

import redis

# Redis cannot be reached, or cannot write just now: the same command may work a little later.
UNREACHABLE = (
    redis.ConnectionError,
    redis.TimeoutError,
    redis.ReadOnlyError,
    redis.OutOfMemoryError,
)
