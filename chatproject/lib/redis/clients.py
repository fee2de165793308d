"""Clients of the Redis that holds run logs, leases and flags (the queue has RQ's own clients)."""

from __future__ import annotations

from functools import cache

import redis
import redis.asyncio
from django.conf import settings
from redis.backoff import NoBackoff
from redis.retry import Retry

# Seconds. A Redis on the same network answers within milliseconds. A call that takes longer had
# better fail, since a user's message or the tick of all runs waits for it.
CONNECT_TIMEOUT = 2.0
SOCKET_TIMEOUT = 5.0


@cache
def sync_client() -> redis.Redis:
    """Return this process's client for synchronous code; safe in any thread."""
    return redis.Redis.from_url(
        settings.REDIS_URL,
        socket_connect_timeout=CONNECT_TIMEOUT,
        socket_timeout=SOCKET_TIMEOUT,
    )


def async_client(*, max_connections: int = 32) -> redis.asyncio.Redis:
    """Return a client for the running event loop; the caller closes it with `aclose()`.

    A call waits for a free connection when all are busy: hundreds of sockets that read their logs
    at the same time (after a restart or a reconnect) are no reason to fail.

    It never retries. The followers of runs are its callers; they read again from the cursor that
    they have reached by then, which a blind repetition does not know.
    """
    pool = redis.asyncio.BlockingConnectionPool.from_url(
        settings.REDIS_URL,
        socket_connect_timeout=CONNECT_TIMEOUT,
        socket_timeout=SOCKET_TIMEOUT,
        max_connections=max_connections,
        timeout=SOCKET_TIMEOUT,
        retry=Retry(NoBackoff(), 0),
    )
    return redis.asyncio.Redis.from_pool(pool)
