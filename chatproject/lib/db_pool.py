"""How soon psycopg's pool finds its way back when Postgres was away."""

from __future__ import annotations

from psycopg_pool.base import AttemptWithBackoff

# Seconds before the second try, and by how much each pause is longer than the last. A call that takes
# a connection from the pool drops a broken one with each try. With the pool's own pauses (1, 2, 4 s …)
# one that finds a pool full of them after an outage gives up before it comes to a new one; with these
# it gets past sixteen within five seconds.
FIRST_PAUSE = 0.02
GROWTH = 1.3


def try_again_soon() -> None:
    """Let all pools of this process pause so between their tries. They have no option for it."""
    AttemptWithBackoff.INITIAL_DELAY = FIRST_PAUSE
    AttemptWithBackoff.DELAY_BACKOFF = GROWTH
