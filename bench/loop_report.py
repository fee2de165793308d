"""Reports of Parley's event loops (chatproject.lib.loop_monitor), read from Redis.

The names are repeated and not imported: that module needs Django's settings, which a bench has not.
"""

from __future__ import annotations

import msgspec
import redis

LOOPS, BLOCKS = "loops", "loop:blocks"
EVERY = 6.0  # seconds within which each process has reported at least once


class Loop(msgspec.Struct):
    role: str


class Block(msgspec.Struct):
    role: str
    at: float  # seconds since 1970
    milliseconds: float


def blocks(url: str, since: float, until: float) -> dict[str, list[float]]:
    """Milliseconds of each block between two times, by role; empty lists for roles without one.

    A role of which no process reports is left out: no report does not mean no block.
    """
    with redis.from_url(url) as client:
        loops = [msgspec.json.decode(data, type=Loop) for data in client.hvals(LOOPS)]
        reported = [msgspec.json.decode(data, type=Block) for data in client.lrange(BLOCKS, 0, -1)]
    found: dict[str, list[float]] = {loop.role: [] for loop in loops}
    for block in reported:
        if since <= block.at <= until and block.role in found:
            found[block.role].append(block.milliseconds)
    return found
