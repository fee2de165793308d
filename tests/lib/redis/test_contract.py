"""Private and undocumented behaviour of redis-py, hiredis and limits that the product relies on.

All are pinned with ``==`` in requirements.in, so that an upgrade fails here and not in production.
"""

from __future__ import annotations

import asyncio
import inspect
import time

import hiredis
import pytest
import redis
from limits import RateLimitItemPerSecond
from limits.storage import RedisStorage
from limits.strategies import MovingWindowRateLimiter
from redis.asyncio.connection import AbstractConnection, ConnectionPool
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool
from redis.exceptions import ResponseError

from chatproject.lib.redis.clients import WaryAsyncPool, WaryPool


def test_connection_methods_take_our_arguments():
    assert list(inspect.signature(ConnectionPool.make_connection).parameters) == ["self"]
    inspect.signature(AbstractConnection.connect).bind(None)
    inspect.signature(AbstractConnection.disconnect).bind(None, nowait=True)


async def test_pools_have_the_names_that_ours_use(valkey_url: str):
    pool = WaryPool.from_url(valkey_url)
    connection = pool.get_connection()
    assert connection._sock is not None
    connection.disconnect()
    assert connection._sock is None
    idle = WaryAsyncPool.from_url(valkey_url)._available_connections
    assert len(idle) == 0
    assert isinstance(AbstractConnection.is_connected, property)


async def test_connection_can_be_robbed_of_its_streams(valkey_url: str):
    """A connection opened by redis-py outlives `disconnect` once its streams were taken."""
    connection = ConnectionPool.from_url(valkey_url).make_connection()
    assert (connection._reader, connection._writer) == (None, None)
    await connection.connect()
    reader, writer = connection._reader, connection._writer
    assert isinstance(reader, asyncio.StreamReader)
    assert isinstance(writer, asyncio.StreamWriter)
    connection._reader = connection._writer = None
    await connection.disconnect(nowait=True)
    writer.write(b"PING\r\n")
    assert await reader.readline() == b"+PONG\r\n"
    writer.transport.abort()


def test_blocking_reads_have_no_default_timeout():
    """redis-py 8 sets one of 5 s, which fails the reads of an idle channels-redis layer."""
    assert inspect.signature(AbstractConnection).parameters["socket_timeout"].default is None


def test_sentinel_pool_names_its_clients():
    pool = SentinelConnectionPool("parley", Sentinel([("127.0.0.1", 1)]))
    [client] = pool.sentinel_manager.sentinels
    assert inspect.iscoroutinefunction(client.aclose)


def test_hiredis_parses_errors_and_pieces():
    incomplete = object()
    reader = hiredis.Reader(replyError=ResponseError, notEnoughData=incomplete)
    reader.feed(b"-ERR wrong\r\n*3\r\n$7\r\nmessage\r\n$1\r\na\r\n$2\r\nb")
    assert isinstance(reader.gets(), ResponseError)
    assert reader.gets() is incomplete
    reader.feed(b"c\r\n>3\r\n$7\r\nmessage\r\n$1\r\na\r\n$1\r\nb\r\n!")
    assert reader.gets() == [b"message", b"a", b"bc"]
    pushed = reader.gets()  # of RESP3
    assert isinstance(pushed, list)
    assert pushed == [b"message", b"a", b"b"]
    reader.feed(b"?\r\n")
    with pytest.raises(hiredis.ProtocolError):
        reader.gets()


def test_hiredis_packs_text_bytes_and_numbers():
    packed = hiredis.pack_command(("SET", b"\xff", 7))  # type: ignore[arg-type]
    assert packed == b"*3\r\n$3\r\nSET\r\n$1\r\n\xff\r\n$1\r\n7\r\n"


def test_limit_counted_in_a_pipeline_is_the_librarys(valkey_url: str):
    """`limits` counts both in the same key, by a script of the storage that a pipeline can call."""
    client = redis.Redis.from_url(valkey_url)
    storage = RedisStorage(valkey_url, connection_pool=client.connection_pool, key_prefix="limit")
    limiter, rate = MovingWindowRateLimiter(storage), RateLimitItemPerSecond(2, 60, "of")
    assert limiter.hit(rate, "name", "key")
    pipeline = client.pipeline(transaction=False)
    for _ in range(2):
        storage.lua_acquire_moving_window(
            [storage.prefixed_key(rate.key_for("name", "key"))],
            [time.time(), rate.amount, rate.get_expiry(), 1],
            client=pipeline,
        )
    assert pipeline.execute() == [1, None]
    assert limiter.get_window_stats(rate, "name", "key").remaining == 0
    assert not limiter.test(rate, "name", "key")
    [key] = client.scan_iter()
    assert key.startswith(b"limit:of/")
    client.close()
