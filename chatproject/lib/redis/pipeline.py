"""Batches of Redis commands over one connection, at the price of one write and one read.

The caller packs the commands: with `pack`, or with `head` and `bulk` when many have a beginning in
common.
"""

from __future__ import annotations

import asyncio
from typing import Any

import hiredis
from redis.asyncio.connection import ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import TimeoutError as RedisTimeoutError

from chatproject.lib.redis.connection import Connection

Argument = str | bytes | int


def pack(*arguments: Argument) -> bytes:
    """Return a command in its wire format."""
    packed: bytes = hiredis.pack_command(arguments)  # type: ignore[arg-type]  # any length
    return packed


def head(count: int, *arguments: str | bytes) -> bytes:
    """Return the beginning of a command of ``count`` arguments; `bulk` makes each further one."""
    return b"*%d\r\n" % count + b"".join(
        bulk(argument.encode() if isinstance(argument, str) else argument) for argument in arguments
    )


def bulk(argument: bytes) -> bytes:
    """Return one argument in its wire format."""
    return b"$%d\r\n%b\r\n" % (len(argument), argument)


class Pipeline:
    """A connection to the Redis at a URL, opened at first use and again after it was lost.

    Belongs to one event loop. Times are in seconds. Nothing is retried: after a failed batch it is
    unknown which of its commands Redis has carried out.
    """

    def __init__(self, url: str, *, connect_timeout: float, timeout: float) -> None:
        self._connect_timeout = connect_timeout
        self._timeout = timeout
        self._pool: ConnectionPool = ConnectionPool.from_url(
            url, socket_connect_timeout=connect_timeout, retry=Retry(NoBackoff(), 0)
        )
        self._connection: Connection | None = None
        self._opening = asyncio.Lock()

    async def execute(self, commands: bytes, count: int) -> list[Any]:
        """Write ``count`` packed commands; returns their answers in order.

        An error that Redis answers to a command is an item of the list. Raises RedisError when the
        connection fails or the last answer is late.
        """
        async with self._opening:
            connection = self._connection
            if connection is None or connection.ended.is_set():
                connection = Connection()
                await connection.open(
                    self._pool.make_connection(),  # type: ignore[no-untyped-call]
                    timeout=self._connect_timeout,
                )
                self._connection = connection
        answers = connection.request(commands, count, at_once=True)
        try:
            async with asyncio.timeout(self._timeout):
                return await answers
        except TimeoutError:
            # A late answer would be taken for the next command's.
            error = RedisTimeoutError(f"Redis did not answer within {self._timeout:g} s.")
            connection.end(error)
            raise error from None

    async def command(self, *arguments: Argument) -> Any:
        """Write one command; returns its answer. Raises RedisError, also when Redis refuses it."""
        (answer,) = await self.execute(pack(*arguments), 1)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def close(self) -> None:
        """Close the connection; a later `execute` opens another one."""
        if self._connection is not None:
            await self._connection.close()
