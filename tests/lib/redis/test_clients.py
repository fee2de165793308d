"""Clients of Redis: callers neither wait in vain nor all for the same silent server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from chatproject.lib.redis import clients
from chatproject.lib.redis.clients import WaryPool, async_client
from tests.support.black_hole import BlackHole
from tests.support.programs import wait_until


async def test_calls_wait_for_a_free_connection(valkey_url, settings):
    settings.REDIS_URL = valkey_url
    client = async_client(max_connections=2)
    try:
        answers = await asyncio.gather(*[client.incr("calls") for _ in range(200)])
    finally:
        await client.aclose()
    assert sorted(answers) == list(range(1, 201))


@pytest.fixture
def hole(valkey_url: str) -> Iterator[BlackHole]:
    with BlackHole(valkey_url) as hole:
        yield hole


@pytest.fixture
def client(hole: BlackHole) -> Iterator[redis.Redis]:
    """A client with three idle connections through the hole, and a time limit of a second or two."""
    url = f"{hole.url}?socket_timeout=1.2&socket_connect_timeout=1.2"
    with redis.Redis(connection_pool=WaryPool.from_url(url)) as client:
        pool = client.connection_pool
        for connection in [pool.get_connection() for _ in range(3)]:
            pool.release(connection)
        yield client
        hole.open()


def test_one_lost_connection_replaces_all_idle_ones(client: redis.Redis, hole: BlackHole):
    hole.lose_connections()
    with pytest.raises(redis.TimeoutError):
        client.ping()
    wait_until(lambda: answers(client), "Redis answers again", 3)
    began = time.monotonic()
    assert all(client.ping() for _ in range(20))
    assert time.monotonic() - began < 1


def test_callers_do_not_all_wait_for_silent_redis(client: redis.Redis, hole: BlackHole):
    hole.close()
    with pytest.raises(redis.TimeoutError):
        client.ping()
    began = time.monotonic()
    for _ in range(100):
        with pytest.raises(redis.ConnectionError, match="a moment ago"):
            client.ping()
    assert time.monotonic() - began < 0.5
    time.sleep(clients.PROBE_SECONDS)
    with pytest.raises(redis.TimeoutError):
        client.ping()
    hole.open()
    wait_until(lambda: answers(client), "Redis answers again", 3)


def answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.RedisError:
        return False


async def test_one_failed_connection_closes_idle_ones_of_a_loop(hole: BlackHole, settings):
    settings.REDIS_URL = f"{hole.url}?socket_timeout=0.5"
    client: Any = async_client()
    assert await asyncio.gather(*(client.ping() for _ in range(5))) == [True] * 5
    hole.lose_connections()
    with pytest.raises(redis.TimeoutError):
        await client.ping()
    assert [await client.ping() for _ in range(10)] == [True] * 10
    await client.aclose()
