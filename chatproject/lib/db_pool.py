"""How psycopg's pool looks after its connections: what it has no option for."""

from __future__ import annotations

import select
from typing import Any

from psycopg import Connection
from psycopg_pool import ConnectionPool
from psycopg_pool.base import AttemptWithBackoff

# Seconds before the second try, and by how much each pause is longer than the last. A call that takes
# a connection from the pool drops a broken one with each try. With the pool's own pauses (1, 2, 4 s …)
# one that finds a pool full of them after an outage gives up before it comes to a new one; with these
# it gets past sixteen within five seconds.
FIRST_PAUSE = 0.02
GROWTH = 1.3

_ask = ConnectionPool.check_connection


def set_up() -> None:
    """Let all pools of this process do as this module says."""
    AttemptWithBackoff.INITIAL_DELAY = FIRST_PAUSE
    AttemptWithBackoff.DELAY_BACKOFF = GROWTH
    ConnectionPool.check_connection = staticmethod(check)  # type: ignore[assignment]


def check(connection: Connection[Any]) -> None:
    """Raise psycopg.OperationalError for a connection whose server has hung up.

    The pool's own check asks the server, for which each call waits. But a connection that is not in
    use hears nothing until the server goes away, so only one that heard something is asked.
    """
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    if poll.poll(0):
        _ask(connection)
