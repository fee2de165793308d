"""Connection checks and retry pauses of psycopg's pool, for which it has no option."""

from __future__ import annotations

import select
from typing import Any

from psycopg import Connection
from psycopg_pool import ConnectionPool
from psycopg_pool.base import AttemptWithBackoff

# Seconds before the second try, and the growth of the following pauses. A call that takes a
# connection from the pool drops a broken one with each try. With the pool's own pauses (1, 2, 4 s …)
# a call that meets a pool full of them after an outage gives up before it gets a new one; with these
# it gets past sixteen within five seconds.
FIRST_PAUSE = 0.02
GROWTH = 1.3

_ask_server = ConnectionPool.check_connection


def set_up() -> None:
    """Apply this module's pauses and check to all pools of the process."""
    AttemptWithBackoff.INITIAL_DELAY = FIRST_PAUSE
    AttemptWithBackoff.DELAY_BACKOFF = GROWTH
    ConnectionPool.check_connection = staticmethod(check)  # type: ignore[assignment]


def check(connection: Connection[Any]) -> None:
    """Raise psycopg.OperationalError for a connection whose server has hung up.

    The pool's own check asks the server, one round trip for each call. But an idle connection
    receives nothing until its server hangs up, so only one with pending bytes is asked.
    """
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    if poll.poll(0):
        _ask_server(connection)
