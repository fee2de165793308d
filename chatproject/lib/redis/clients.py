"""Clients of the Redis that holds run logs, leases and flags (the queue has RQ's own clients).

Their time limits are part of the URL (`env.redis_url`). A Redis on the same network answers within
milliseconds. A call that takes longer had better fail, since a user's message or the tick of all runs
waits for it.
"""

from __future__ import annotations

import time
from functools import cache
from typing import Any

import redis
import redis.asyncio
from django.conf import settings
from redis.backoff import NoBackoff
from redis.retry import Retry

# Seconds, of connections that take no limits from the URL.
CONNECT_TIMEOUT = 2.0
SOCKET_TIMEOUT = 3.0

SILENCE_SECONDS = 1.0  # after which a failure counts as one by a time limit
PROBE_SECONDS = 1.0

POOL_TIMEOUT = 5.0  # seconds for a free connection of `async_client`


class WaryPool(redis.ConnectionPool):
    """A pool whose callers do not all wait for the same silent server.

    When a connection failed, the idle ones are closed: they lead to the same server, and where that
    has moved, each of them would cost a caller the whole time limit before it is found dead. After a
    failure by a time limit other callers fail at once (circuit breaker), except one every
    PROBE_SECONDS, until a call has succeeded.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._probe_at: float | None = None  # time.monotonic() of the next try; None: no failure
        self._taken_at: dict[Any, float] = {}
        super().__init__(*args, **kwargs)

    def get_connection(self, *args: Any, **kwargs: Any) -> Any:
        now = time.monotonic()
        if self._probe_at is not None:
            if now < self._probe_at:
                raise redis.ConnectionError("Redis did not answer in time a moment ago.")
            self._probe_at = now + PROBE_SECONDS
        try:
            connection = super().get_connection(*args, **kwargs)
        except redis.RedisError:
            self._note_failure(now)
            raise
        self._taken_at[connection] = now
        return connection

    def release(self, connection: Any) -> None:
        taken_at = self._taken_at.pop(connection, None)
        if connection._sock is not None:
            self._probe_at = None
        elif taken_at is not None:  # the client closed it after a failure
            self.disconnect(inuse_connections=False)
            self._note_failure(taken_at)
        super().release(connection)

    def _note_failure(self, began: float) -> None:
        now = time.monotonic()
        if now - began > SILENCE_SECONDS:  # else the server refuses, which costs callers no time
            self._probe_at = now + PROBE_SECONDS


class WaryAsyncPool(redis.asyncio.BlockingConnectionPool):
    """WaryPool for an event loop."""

    async def release(self, connection: Any) -> None:
        if not connection.is_connected:
            for idle in self._available_connections:
                await idle.disconnect(nowait=True)
        await super().release(connection)


@cache
def sync_client() -> redis.Redis:
    """Return this process's client for synchronous code; safe in any thread."""
    return redis.Redis(connection_pool=WaryPool.from_url(settings.REDIS_URL))


def async_client(*, max_connections: int = 32) -> redis.asyncio.Redis:
    """Return a client for the running event loop; the caller closes it with `aclose()`.

    A call waits for a free connection when all are busy: hundreds of sockets that read their logs
    at the same time (after a restart or a reconnect) are no reason to fail.

    It never retries. The followers of runs are its callers; they read again from the cursor that
    they have reached by then, which a blind repetition does not know.
    """
    pool = WaryAsyncPool.from_url(
        settings.REDIS_URL,
        max_connections=max_connections,
        timeout=POOL_TIMEOUT,
        retry=Retry(NoBackoff(), 0),
    )
    return redis.asyncio.Redis.from_pool(pool)
