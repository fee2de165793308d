"""A connection to Redis without redis-py's readers: for protocols that parse the answers themselves."""

from __future__ import annotations

import asyncio

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError


async def open_transport(
    connection: AbstractConnection, protocol: asyncio.Protocol, *, timeout: float
) -> asyncio.StreamWriter:
    """Let redis-py connect (TCP, TLS, unix socket, Sentinel, AUTH), then take its transport.

    From then on `protocol` is the transport's. Keep the writer that is returned: Python closes the
    transport of one that is thrown away. Raises RedisError, whatever it was that went wrong.
    """
    try:
        async with asyncio.timeout(timeout):
            await connection.connect()  # type: ignore[no-untyped-call]
        # redis-py has no public way to hand over its socket.
        writer = connection._writer
        if writer is None or writer.transport.is_closing():
            raise RedisConnectionError("Redis hung up at once.")
        connection._reader = connection._writer = None
        writer.transport.set_protocol(protocol)
        return writer
    except RedisError:
        raise
    except Exception as error:
        raise RedisConnectionError(repr(error)) from error
    finally:
        await connection.disconnect(nowait=True)  # without effect when taken over
