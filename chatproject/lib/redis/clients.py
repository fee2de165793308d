"""Clients of the Redis that holds run logs, leases and flags (the queue has RQ's own clients)."""

from __future__ import annotations

from functools import cache

import redis
import redis.asyncio
from django.conf import settings
from redis.backoff import NoBackoff
from redis.retry import Retry

# Seconds. A Redis on the same network answers within milliseconds; a call that takes longer is
# better reported than waited for, as the caller is a person's message or the tick of all runs.
CONNECT_TIMEOUT = 2.0
SOCKET_TIMEOUT = 5.0


@cache
def sync_client() -> redis.Redis:
    """The client of this process for synchronous code; safe in any thread."""
    return redis.Redis.from_url(
        settings.REDIS_URL,
        socket_connect_timeout=CONNECT_TIMEOUT,
        socket_timeout=SOCKET_TIMEOUT,
    )


def async_client(url: str | None = None, *, max_connections: int = 32) -> redis.asyncio.Redis:
    """A client for the running event loop; the caller closes it with `aclose()`.

    A call waits for a free connection when all are busy: hundreds of sockets that read their logs in
    the same moment (a restart, a reconnect) are no reason to fail.

    It does not try again by itself: what is written here goes out in ticks, and the next tick
    knows better than a blind repetition what is still to be written.
    """
    pool = redis.asyncio.BlockingConnectionPool.from_url(
        url or settings.REDIS_URL,
        socket_connect_timeout=CONNECT_TIMEOUT,
        socket_timeout=SOCKET_TIMEOUT,
        max_connections=max_connections,
        timeout=SOCKET_TIMEOUT,
        retry=Retry(NoBackoff(), 0),
    )
    return redis.asyncio.Redis.from_pool(pool)
