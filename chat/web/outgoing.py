"""The sending side of a socket: direct writes, the outbox of user-level events, the budget, the pump.

An event is written in the callback that brings it, as long as nothing waits for the socket. Events
that have to wait, for a client that reads slowly or for a log to be read, are sent by one task, the
pump, which runs until nothing waits: user-level events first, then the followed runs. So order is kept
without locks, and a slow client delays only its own pump.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

from chat import protocol
from chat.errors import ChatError
from chatproject.lib import metrics, outages
from chatproject.lib.server.asgi_types import Send, TextFrames

logger = logging.getLogger(__name__)

# Limits on the user-level events buffered for a slow client; beyond them the socket is closed with
# TRY_AGAIN_LATER.
MAX_OUTBOX = 500  # frames
MAX_OUTBOX_BYTES = 1024 * 1024

# Budget for the events that the followers of one socket buffer together. Beyond it a follower drops
# its events and reads the log when the client has caught up, so the memory of a slow client is bounded.
QUEUE_BYTES = 256 * 1024

UNREACHABLE = (*outages.UNREACHABLE, OSError)

Serve = Callable[[], Awaitable[None]]
"""Sends the pending events of one source. May raise one of UNREACHABLE: the source then asks again."""


class Outgoing:
    """Sends the events of one socket, in order and without locks.

    `asgi_send` takes ASGI messages; `frames` writes encoded text past it, where the server has that
    extension. `short_ends`: the client keeps what it received of a reply, so that the end of a run that it
    has followed needs no text. Until `open` is called nothing is written, and from `close` or `stop` on everything is
    dropped.
    """

    def __init__(
        self, asgi_send: Send, frames: TextFrames | None, *, short_ends: bool = False
    ) -> None:
        self.short_ends = short_ends
        self.is_open = False
        self._has_ended = False
        self._asgi_send = asgi_send
        self._frames = frames
        self._outbox: deque[bytes] = deque()
        self._outbox_bytes = 0
        self._is_too_slow = False
        self._was_unreachable = False  # Redis or the database, as the log has it
        self._queued_bytes = 0
        self._due: dict[Serve, None] = {}  # in order
        self._pump: asyncio.Task[None] | None = None

    def open(self, ready: bytes) -> None:
        """Begin to send: first `ready`, then the events that arrived before it."""
        if self._has_ended:
            return
        self._outbox.appendleft(ready)
        self.is_open = True
        self._start_pump()

    def put(self, data: bytes) -> None:
        """Send a user-level event, now or as soon as the socket takes it."""
        if self._has_ended or self._is_too_slow or self.write_now(data):
            return
        self._outbox.append(data)
        self._outbox_bytes += len(data)
        if len(self._outbox) > MAX_OUTBOX or self._outbox_bytes > MAX_OUTBOX_BYTES:
            self._is_too_slow = True
            self._outbox.clear()
        self._start_pump()

    def write_now(self, data: bytes) -> bool:
        """Write at once if nothing at all waits for the socket; False when something does."""
        frames = self._frames
        if not self.is_open or frames is None or self._pump is not None or frames.is_full:
            return False
        frames.write((data,))
        return True

    def reserve(self, size: int) -> bool:
        """Take bytes from the followers' budget; False when it is used up."""
        if self._queued_bytes > QUEUE_BYTES:
            return False
        self._queued_bytes += size
        return True

    def release(self, size: int) -> None:
        """Return bytes to the followers' budget."""
        self._queued_bytes -= size

    def serve_soon(self, serve: Serve) -> None:
        """Have the pump call `serve` once when the socket takes something."""
        if not self._has_ended:
            self._due[serve] = None
            self._start_pump()

    def _start_pump(self) -> None:
        if self._pump is None and self.is_open:
            self._pump = asyncio.create_task(self._run_pump())

    async def _run_pump(self) -> None:
        while self.is_open and (self._is_too_slow or self._outbox or self._due):
            try:
                if self._is_too_slow:
                    await self.close(protocol.TRY_AGAIN_LATER)
                    return
                await self._flush()
                if self._due:
                    serve = next(iter(self._due))
                    del self._due[serve]
                    await serve()
                    self._was_unreachable = False
            except UNREACHABLE as error:
                if not self._was_unreachable:
                    self._was_unreachable = True
                    logger.warning("a socket waits for Redis or the database: %r", error)
                await asyncio.sleep(random.uniform(0.5, 1.5))  # noqa: S311  not a secret
            except Exception:
                logger.exception("a socket's pump failed")
                await self.close(protocol.INTERNAL_ERROR)
                return
        self._pump = None

    async def _flush(self) -> None:
        while self._outbox:
            texts = tuple(self._outbox)
            self._outbox.clear()
            self._outbox_bytes = 0
            await self.send(texts)

    async def send(self, texts: Sequence[bytes]) -> None:
        """Send each text in a frame of its own; return when the socket takes more."""
        if self._frames is None:
            for text in texts:
                await self._asgi_send({"type": "websocket.send", "text": text.decode()})
        else:
            self._frames.write(texts)
            if self._frames.is_full:
                await self._frames.drain()

    async def close(
        self, code: int, error: ChatError | None = None, ref: str | None = None
    ) -> None:
        """Close the socket; `error`, which may refer to a frame, is its last frame.

        Without effect when the socket is being closed. Waits for no slow client before the close.
        """
        if self._has_ended:
            return
        self.stop()
        metrics.SOCKETS_CLOSED.labels(code).inc()
        if error is not None:
            last = protocol.Error.of(error, ref).encode()
            if self._frames is None:
                await self._asgi_send({"type": "websocket.send", "text": last.decode()})
            else:
                self._frames.write((last,))
        await self._asgi_send({"type": "websocket.close", "code": code})

    def stop(self) -> None:
        """End the pump, and drop all present and later events: the socket is closed, or will be."""
        self.is_open = False
        self._has_ended = True
        self._outbox.clear()
        self._due.clear()
        if self._pump is not None and self._pump is not asyncio.current_task():
            self._pump.cancel()
