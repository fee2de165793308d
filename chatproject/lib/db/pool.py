"""Connection checks, retry pauses and time limits of psycopg's pool, for which it has no option.

And its metrics.
"""

from __future__ import annotations

import select
import time
from collections.abc import Iterator
from typing import Any

from django.db import connections
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from psycopg import Connection
from psycopg_pool import ConnectionPool, PoolTimeout
from psycopg_pool.base import AttemptWithBackoff

from chatproject.lib import metrics
from chatproject.lib.db import breaker, limits

# Seconds before the second try, and the growth of the following pauses. A call that takes a
# connection from the pool drops a broken one with each try. With the pool's own pauses (1, 2, 4 s …)
# a call that meets a pool full of them after an outage gives up before it gets a new one; with these
# it gets past sixteen within five seconds.
FIRST_PAUSE = 0.02
GROWTH = 1.3

UNUSED_SECONDS = 3.0  # after which a connection is asked before it is used
CHECK_SECONDS = 1.0  # for its answer

LEAST_WAIT = 0.5  # seconds for a connection when the time for an answer is used up

_ask_server = ConnectionPool.check_connection
_getconn = ConnectionPool.getconn


def set_up() -> None:
    """Apply this module's pauses, check and time limits to all pools of the process."""
    AttemptWithBackoff.INITIAL_DELAY = FIRST_PAUSE
    AttemptWithBackoff.DELAY_BACKOFF = GROWTH
    ConnectionPool.check_connection = staticmethod(check)  # type: ignore[assignment]
    ConnectionPool.getconn = getconn  # type: ignore[method-assign, assignment]


def getconn(pool: ConnectionPool[Any], timeout: float | None = None) -> Connection[Any]:
    """Return a connection of the pool, in time for the answer of the enclosing lib.db.limits.

    Raises PoolTimeout, at once while Postgres is silent (lib.db.breaker).
    """
    left = limits.time_left()
    if left is None:
        return _getconn(pool, timeout)
    if not breaker.may_try():
        raise PoolTimeout("Postgres did not answer in time a moment ago")
    if timeout is None:
        timeout = max(LEAST_WAIT, min(pool.timeout, left))
    try:
        return _getconn(pool, timeout)
    except PoolTimeout:
        breaker.note_no_connection()
        raise


def check(connection: Connection[Any]) -> None:
    """Raise psycopg.OperationalError for a connection whose server has hung up or is silent.

    The pool's own check asks the server, one round trip for each call. But an idle connection
    receives nothing until its server hangs up, so only one with pending bytes is asked; and one that
    was not used for some seconds, as it may have been lost without a word.
    """
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    is_suspect = bool(poll.poll(0))
    if isinstance(connection, limits.Connection):
        now = time.monotonic()
        is_suspect = is_suspect or now - connection.lent_at > UNUSED_SECONDS
        connection.lent_at = now
        connection.idle_limit = None  # it is lent: the borrower's limits hold
    if is_suspect:
        with limits.statements(CHECK_SECONDS):
            _ask_server(connection)


GAUGES = {
    "pool_max": ("max_connections", "Connections that the pools may open."),
    "pool_size": ("connections", "Connections of the pools."),
    "pool_available": ("idle_connections", "Connections of the pools that are not lent."),
    "requests_waiting": ("waiting_calls", "Calls that wait for a connection."),
}
COUNTERS = {
    "requests_num": ("calls", "Calls that took a connection.", 1.0),
    "requests_queued": ("queued_calls", "Calls that had to wait for a connection.", 1.0),
    "requests_wait_ms": ("wait_seconds", "Time that calls waited for a connection.", 0.001),
    "requests_errors": ("failed_calls", "Calls that got no connection in time.", 1.0),
    "connections_errors": ("failed_connections", "Attempts to connect that failed.", 1.0),
    "connections_lost": ("lost_connections", "Connections that were found broken.", 1.0),
}


class PoolCollector:
    """The statistics that psycopg's pool keeps, as metrics of this process."""

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics of the default database's pool."""
        role = metrics.PROCESS.role
        stats = connections["default"].pool.get_stats() if role else {}  # type: ignore[attr-defined]
        for key, (name, meaning) in GAUGES.items():
            value = GaugeMetricFamily(f"parley_db_pool_{name}", meaning, labels=["role"])
            if role:
                value.add_metric([role], stats.get(key, 0))
            yield value
        for key, (name, meaning, unit) in COUNTERS.items():
            total = CounterMetricFamily(f"parley_db_pool_{name}", meaning, labels=["role"])
            if role:
                total.add_metric([role], unit * stats.get(key, 0))
            yield total


metrics.REGISTRY.register(PoolCollector())
