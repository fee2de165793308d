"""The Redis hosts of the channel layer: options as channels-redis takes them, pools and clients.

An entry of ``hosts`` is a URL (redis, rediss, unix), a (host, port) or a dict, also one that names
Sentinels. channels-redis turns each of them into a dict of options.
"""

from __future__ import annotations

from typing import Any

import redis
from channels_redis.utils import create_pool
from django.core.exceptions import ImproperlyConfigured
from redis.asyncio.connection import ConnectionPool
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry
from redis.sentinel import Sentinel

from chatproject.lib.redis.clients import WaryPool

Host = str | tuple[str, int] | dict[str, Any]

SENTINEL_TIMEOUT = 1.0  # seconds for one Sentinel, so that the next ones are asked in time
SYNC_TIMEOUT = 5.0  # seconds for which synchronous code waits for a host


def make_pool(options: dict[str, Any]) -> ConnectionPool:
    """Return redis-py's factory of connections to a host; none is pooled here.

    Raises ValueError or TypeError for wrong options, some only from its `make_connection`.
    """
    if "master_name" in options:
        kwargs = _sentinel_kwargs(options.get("sentinel_kwargs"), AsyncRetry(NoBackoff(), 0))
        options = {**options, "sentinel_kwargs": kwargs}
    pool: ConnectionPool = create_pool(options)  # type: ignore[no-untyped-call]
    return pool


def make_sync_client(options: dict[str, Any]) -> redis.Redis:
    """Return a client of a host for synchronous code; safe in any thread."""
    timeouts = {"socket_timeout": SYNC_TIMEOUT, "socket_connect_timeout": SYNC_TIMEOUT}
    options = {**timeouts, **options}
    if "address" in options:
        return redis.Redis(connection_pool=WaryPool.from_url(options.pop("address"), **options))
    if "master_name" not in options:
        return redis.Redis(connection_pool=redis.ConnectionPool(**options))
    kwargs = _sentinel_kwargs(options.pop("sentinel_kwargs", None), Retry(NoBackoff(), 0))
    sentinel = Sentinel(options.pop("sentinels"), sentinel_kwargs=kwargs)  # type: ignore[no-untyped-call]
    client: redis.Redis = sentinel.master_for(options.pop("master_name"), **options)  # type: ignore[no-untyped-call]
    return client


def _sentinel_kwargs(given: dict[str, Any] | None, no_retry: Retry | AsyncRetry) -> dict[str, Any]:
    # redis-py asks one Sentinel after the other, and would retry each of them for seconds.
    return {
        "socket_timeout": SENTINEL_TIMEOUT,
        "socket_connect_timeout": SENTINEL_TIMEOUT,
        "retry": no_retry,
        **(given or {}),
    }


def url_of(options: dict[str, Any]) -> str:
    """Return a host's URL.

    Raises ImproperlyConfigured for a host without one (Sentinel), or with options beside it.
    """
    if options.keys() == {"address"}:
        return str(options["address"])
    if options.keys() == {"host", "port"}:
        return f"redis://{options['host']}:{options['port']}"
    raise ImproperlyConfigured("Give each host of CHANNEL_LAYERS as a URL.")
