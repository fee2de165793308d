"""Batches of Redis commands over one connection, at the price of one write and one read.

redis-py's pipeline costs about 25 µs of CPU per command: objects for each of them, and two timeouts
for each answer. Here the caller packs the commands (`pack`, or `head` and `bulk` for what is alike in
all of them), and hiredis parses the answers in a plain loop.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import hiredis
from redis.asyncio.connection import ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from chatproject.lib.redis.connection import open_transport

Argument = str | bytes | int

_MORE = object()  # hiredis: the rest of the answer has not come in yet


def pack(*arguments: Argument) -> bytes:
    """A command as it goes over the wire."""
    packed: bytes = hiredis.pack_command(arguments)  # type: ignore[arg-type]  # any length
    return packed


def head(count: int, *arguments: str | bytes) -> bytes:
    """The beginning of a command of `count` arguments; `bulk` makes each of those that follow."""
    return b"*%d\r\n" % count + b"".join(
        bulk(argument.encode() if isinstance(argument, str) else argument) for argument in arguments
    )


def bulk(argument: bytes) -> bytes:
    """One argument as it goes over the wire."""
    return b"$%d\r\n%b\r\n" % (len(argument), argument)


class Pipeline:
    """A connection to the Redis of a URL, opened when it is needed, and again when it was lost.

    Belongs to one event loop. Times are in seconds. Nothing is tried twice: who wrote a batch that
    failed does not know what of it was done.
    """

    def __init__(self, url: str, *, connect_timeout: float, timeout: float) -> None:
        self._connect_timeout = connect_timeout
        self._timeout = timeout
        self._pool: ConnectionPool = ConnectionPool.from_url(
            url, socket_connect_timeout=connect_timeout, retry=Retry(NoBackoff(), 0)
        )
        self._connection: _Connection | None = None
        self._opening = asyncio.Lock()

    async def execute(self, commands: bytes, count: int) -> list[Any]:
        """Write so many packed commands; returns their answers in order.

        An error that Redis answers to one of them is in its place in the list. Raises RedisError
        when the connection fails, or the last answer is not there in time.
        """
        connection = await self._open()
        answers = connection.write(commands, count)
        try:
            async with asyncio.timeout(self._timeout):
                return await answers
        except TimeoutError:
            # Later answers would be taken for those of other commands.
            error = RedisTimeoutError(f"Redis did not answer within {self._timeout:g} s.")
            connection.lose(error)
            raise error from None

    async def command(self, *arguments: Argument) -> Any:
        """Write one command; returns its answer. Raises RedisError, also when Redis refuses it."""
        (answer,) = await self.execute(pack(*arguments), 1)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def close(self) -> None:
        """Close the connection; `execute` would open another."""
        if self._connection is not None:
            self._connection.lose(RedisConnectionError("The connection to Redis was closed."))
            await self._connection.closed.wait()

    async def _open(self) -> _Connection:
        async with self._opening:
            if self._connection is None or self._connection.is_lost:
                connection = _Connection()
                connection.writer = await open_transport(
                    self._pool.make_connection(),  # type: ignore[no-untyped-call]
                    connection,
                    timeout=self._connect_timeout,
                )
                self._connection = connection
            return self._connection


@dataclass(eq=False, slots=True)
class _Batch:
    """Commands that were written, and what came back so far."""

    count: int
    done: asyncio.Future[list[Any]]
    answers: list[Any] = field(default_factory=list)


class _Connection(asyncio.Protocol):
    """One connection, once."""

    def __init__(self) -> None:
        self.is_lost = False
        self.closed = asyncio.Event()
        self.writer: asyncio.StreamWriter | None = None
        self._reader = hiredis.Reader(replyError=ResponseError, notEnoughData=_MORE)
        self._waiting: deque[_Batch] = deque()

    def write(self, commands: bytes, count: int) -> asyncio.Future[list[Any]]:
        batch = _Batch(count, asyncio.get_running_loop().create_future())
        self._waiting.append(batch)
        assert self.writer is not None
        self.writer.transport.write(commands)
        return batch.done

    def data_received(self, data: bytes) -> None:
        reader = self._reader
        reader.feed(data)
        while self._waiting:
            batch = self._waiting[0]
            answers = batch.answers
            while len(answers) < batch.count:
                answer = reader.gets()
                if answer is _MORE:
                    return
                answers.append(answer)
            self._waiting.popleft()
            if not batch.done.done():  # else nobody waits for it any more
                batch.done.set_result(answers)

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed.set()
        reason = f" ({exc})" if exc else ""
        self.lose(RedisConnectionError(f"Redis hung up{reason}."))

    def lose(self, error: Exception) -> None:
        """End it; who waits gets the error."""
        if self.is_lost:
            return
        self.is_lost = True
        if self.writer is not None:
            self.writer.transport.abort()
        for batch in self._waiting:
            if not batch.done.done():
                batch.done.set_exception(error)
        self._waiting.clear()
