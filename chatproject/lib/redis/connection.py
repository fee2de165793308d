"""The hand-written connection to Redis, for the worker's pipeline and for publish/subscribe.

redis-py opens it (TCP, TLS, unix socket, Sentinel, AUTH). From then on `Connection` is the protocol
of its transport, and hiredis parses the replies in a plain loop. redis-py's own pipeline costs about
25 µs of CPU per command: several objects for each command, and two timeouts for each answer.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import hiredis
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError

# Of one connection, before it `is_full`.
MAX_BYTES = 8 * 2**20  # of commands that the socket has not taken yet
MAX_UNANSWERED = 50_000  # requests and posts

_PING = b"*1\r\n$4\r\nPING\r\n"
_INCOMPLETE = object()  # hiredis: the rest of the reply has not come in yet


@dataclass(eq=False, slots=True)
class _Request:
    """Commands written together, and their answers so far."""

    count: int
    done: asyncio.Future[list[Any]]
    answers: list[Any] = field(default_factory=list)


class Connection(asyncio.Protocol):
    """A connection, used once: it collects commands, opens, matches answers by order, and ends.

    Commands of one turn of the event loop leave in one write. Commands given before `open` leave
    when it succeeds and fail when it fails. `is_full` signals backpressure; the caller checks it.

    ``on_message`` receives the channel and the data of published messages; a connection without it
    must not subscribe. ``on_drop`` receives the number of posts that failed, and the reason.
    ``on_end`` is called once when the connection is lost or cannot be opened, with the error and
    whether it had been open, but not after `close`. With ``health_check_interval`` (seconds) a host
    that does not even answer a PING is given up after two to three intervals.
    """

    def __init__(
        self,
        *,
        on_message: Callable[[bytes, bytes], None] | None = None,
        on_drop: Callable[[int, Exception], None] | None = None,
        on_end: Callable[[Exception, bool], None] | None = None,
        health_check_interval: float | None = None,
    ) -> None:
        self.ended = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._on_message = on_message
        self._on_drop = on_drop
        self._on_end = on_end
        self._health_check_interval = health_check_interval
        self._reader = hiredis.Reader(replyError=ResponseError, notEnoughData=_INCOMPLETE)
        # Kept as long as the transport: Python closes the transport of a discarded writer.
        self._writer: asyncio.StreamWriter | None = None
        self._is_closed = asyncio.Event()
        self._commands: list[bytes] = []  # not yet handed to the transport
        self._size = 0  # of those, in bytes
        self._unanswered: deque[_Request | None] = deque()  # None is a post
        self._can_write = False
        self._write_is_scheduled = False
        self._silent_checks = 0
        self._check_timer: asyncio.TimerHandle | None = None
        self._peer: object = None

    @property
    def is_open(self) -> bool:
        """Whether `open` has succeeded; stays true after the end."""
        return self._writer is not None

    @property
    def is_full(self) -> bool:
        """Whether too many bytes wait for the socket, or too many commands for an answer."""
        return self._size >= MAX_BYTES or len(self._unanswered) >= MAX_UNANSWERED

    @property
    def has_unanswered(self) -> bool:
        """Whether a command waits to be written or answered."""
        return bool(self._unanswered)

    def request(
        self, commands: bytes, count: int = 1, *, at_once: bool = False
    ) -> asyncio.Future[list[Any]]:
        """Write packed commands; the future receives their answers in order.

        An error that Redis answers to a command is an item of the list. The future fails with a
        RedisError when the connection ends first. ``at_once`` does not wait for the end of the turn.
        """
        request = _Request(count, self._loop.create_future())
        self._write(commands, request, at_once=at_once)
        return request.done

    def post(self, command: bytes) -> None:
        """Write a packed command and ignore its answer; only failures are counted (``on_drop``)."""
        self._write(command, None)

    def _write(self, commands: bytes, request: _Request | None, *, at_once: bool = False) -> None:
        self._commands.append(commands)
        self._size += len(commands)
        self._unanswered.append(request)
        if at_once:
            self._write_out()
        elif self._can_write and not self._write_is_scheduled:
            self._write_is_scheduled = True
            self._loop.call_soon(self._write_out)

    def _write_out(self) -> None:
        self._write_is_scheduled = False
        if self._can_write and self._commands and self._writer is not None:
            batch = b"".join(self._commands)
            self._commands.clear()
            self._size = 0
            self._writer.transport.write(batch)

    async def open(self, connection: AbstractConnection, *, timeout: float) -> None:
        """Connect and write the collected commands.

        ``connection`` is one of redis-py's that is not connected yet; ``timeout`` (seconds) covers
        TLS, AUTH and asking Sentinel too. Raises RedisError, whatever went wrong; the connection has
        then ended.
        """
        try:
            async with asyncio.timeout(timeout):
                await connection.connect()  # type: ignore[no-untyped-call]
            # redis-py has no public way to hand over its socket.
            writer = connection._writer
            if writer is None or writer.transport.is_closing():
                raise RedisConnectionError("Redis hung up at once.")
            connection._reader = connection._writer = None
            writer.transport.set_protocol(self)
        except RedisError as error:
            self.end(error)
            raise
        except Exception as error:
            failure = RedisConnectionError(repr(error))
            self.end(failure)
            raise failure from error
        finally:
            await connection.disconnect(nowait=True)  # without effect after the handover
        self._writer = writer
        self._peer = writer.get_extra_info("peername")
        self._can_write = True
        if self._health_check_interval is not None:
            self._check_timer = self._loop.call_later(self._health_check_interval, self._check)
        self._write_out()

    def pause_writing(self) -> None:
        self._can_write = False

    def resume_writing(self) -> None:
        self._can_write = True
        self._write_out()

    def data_received(self, data: bytes) -> None:
        # The hot path of worker and web: no function call per reply, except for messages.
        self._silent_checks = 0
        on_message, unanswered, gets = self._on_message, self._unanswered, self._reader.gets
        self._reader.feed(data)
        while (reply := gets()) is not _INCOMPLETE:
            if on_message is not None and isinstance(reply, list) and reply[0] == b"message":
                on_message(reply[1], reply[2])
            elif (request := unanswered[0]) is None:
                unanswered.popleft()
                if isinstance(reply, Exception) and self._on_drop is not None:
                    self._on_drop(1, reply)
            else:
                request.answers.append(reply)
                if len(request.answers) == request.count:
                    unanswered.popleft()
                    if not request.done.done():  # else its caller was cancelled
                        request.done.set_result(request.answers)

    def _check(self) -> None:
        if self._silent_checks == 2:
            # Not at 1: after a pause of this process the answer may lie unread in the socket.
            self.end(RedisConnectionError(f"Redis at {self._peer} is silent."))
            return
        if self._silent_checks == 0:
            self.request(_PING)
        self._silent_checks += 1
        assert self._health_check_interval is not None
        self._check_timer = self._loop.call_later(self._health_check_interval, self._check)

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_closed.set()
        reason = f" ({exc})" if exc else ""
        self.end(RedisConnectionError(f"Redis at {self._peer} hung up{reason}."))

    async def close(self) -> None:
        """End the connection without ``on_end``; returns when its socket is closed."""
        self._on_end = None
        self.end(RedisConnectionError("The connection to Redis was closed."))
        if self.is_open:
            await self._is_closed.wait()

    def end(self, error: Exception) -> None:
        """Hang up; every command without an answer fails with the error."""
        if self.ended.is_set():
            return
        self.ended.set()
        self._can_write = False
        if self._check_timer is not None:
            self._check_timer.cancel()
        if self._writer is not None:
            self._writer.transport.abort()
        requests = [request for request in self._unanswered if request is not None]
        posts = len(self._unanswered) - len(requests)
        self._unanswered.clear()
        self._commands.clear()
        for request in requests:
            if not request.done.done():
                request.done.set_exception(error)
                request.done.exception()  # counts as retrieved: its caller may be cancelled
        if posts and self._on_drop is not None:
            self._on_drop(posts, error)
        if self._on_end is not None:
            self._on_end(error, self.is_open)
