"""How soon psycopg's pool finds its way back when Postgres was away."""

from __future__ import annotations

from psycopg_pool.base import AttemptWithBackoff

# Seconds before the second try, doubled each time. A call that takes a connection from the pool drops
# a broken one with each try: with a second for a beginning, one that finds a pool full of them after
# an outage would give up before it came to a new one.
FIRST_PAUSE = 0.05


def try_again_soon() -> None:
    """Let all pools of this process begin with FIRST_PAUSE. They have no option for it."""
    AttemptWithBackoff.INITIAL_DELAY = FIRST_PAUSE
