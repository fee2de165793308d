"""How a socket follows a run: live and replayed by the same code, nothing missing, nothing doubled.

A follower first joins the run's group, and what the group brings is kept aside. Then it asks the
row whether the run is over, and reads the log after its cursor. Only then does it pass on what the
group brought, without what it has had already. From there on the next event in order goes to the
socket in the moment in which it comes, as long as the socket takes it. A gap in the numbers, too
much that waits and a lost connection to Redis all have the same cure: ask the row and read the log
again.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import ParamSpec, Protocol, TypeVar
from uuid import UUID

import redis

from chat import protocol
from chat.runs import finish
from chat.streaming import groups
from chat.streaming import log as run_log
from chatproject.lib import db, loop_monitor
from chatproject.lib.pubsub.layer import get_layer
from chatproject.lib.pubsub.raw import Attachment
from chatproject.lib.redis.clients import async_client

# What may wait for one socket, of all the runs that it follows. Beyond it a follower forgets what
# waits and reads the log when the client has caught up: a slow client costs no more memory.
QUEUE_BYTES = 256 * 1024

SEND_BYTES = 64 * 1024  # of what is sent before the client is waited for

# Rows and pages of logs that are read at a time for all sockets of a process. More would not be
# faster, as Python's threads take turns; but the event loop would wait for its own turn too long.
READERS = 3

P = ParamSpec("P")
T = TypeVar("T")

Send = Callable[[Sequence[bytes]], Awaitable[None]]
"""Sends events, and returns when the socket takes more."""


class FollowerSocket(Protocol):
    """The socket that a follower serves."""

    queued_bytes: int
    """What waits in the queues of all its followers."""

    def serve_soon(self, follower: Follower) -> None:
        """Have `follower.serve` called when the socket takes something."""

    def send_now(self, text: bytes) -> bool:
        """Send at once if nothing at all waits for the socket; False when something does."""


class ReplayReader:
    """Rows and logs of runs, as the sockets of one event loop read them: a few at a time."""

    def __init__(self) -> None:
        self._client = async_client()
        self._turns = asyncio.Semaphore(READERS)

    async def ask(self, fn: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """`db.run`, when it is the caller's turn."""
        async with self._turns:
            return await db.run(fn, *args, **kwargs)

    async def read_after(self, run_id: UUID, after: int) -> list[bytes]:
        """`runlog.read_after`, when it is the caller's turn. Raises redis.RedisError."""
        async with self._turns:
            return await run_log.read_after(self._client, run_id, after)

    async def close(self) -> None:
        await self._client.aclose()


class Follower:
    """One socket's view of one run; `is_new` when the run was stored a moment ago."""

    def __init__(
        self,
        run_id: UUID,
        after: int,
        *,
        archive: ReplayReader,
        reader: FollowerSocket,
        is_new: bool = False,
    ) -> None:
        self.run_id = run_id
        self.has_ended = False
        self._archive = archive
        self._reader = reader
        self._queue: deque[bytes] = deque()
        self._queued_bytes = 0
        self._behind = True
        # Of a run that is new the log has all there is, even if it has ended meanwhile: its row is
        # asked only when the log, too, may be gone.
        self._asks_row = not is_new
        self._heard = False  # anything since the last `recheck`
        self._attachment: Attachment | None = None
        self._set_cursor(after)

    async def join(self) -> None:
        """Join the run's group; from here on nothing is missed."""
        self._attachment = await get_layer().attach(
            groups.run_group(self.run_id), self._receive, self.fall_behind
        )
        self._reader.serve_soon(self)

    async def leave(self) -> None:
        """Leave the group and forget what waits."""
        self.has_ended = True
        self._clear_queue()
        if self._attachment is not None:
            await self._attachment.detach()

    def rewind(self, after: int) -> None:
        """Go back (or on) to a cursor that the client named."""
        self._set_cursor(after)
        self.fall_behind()

    def recheck(self) -> None:
        """Ask the row and read the log, if nothing was heard since the last call."""
        if self._heard:
            self._heard = False
        else:
            self.fall_behind()

    def fall_behind(self) -> None:
        """Ask the row and read the log again before anything else is passed on."""
        self._clear_queue()
        self._behind = self._asks_row = True
        self._reader.serve_soon(self)

    def _set_cursor(self, after: int) -> None:
        self._last = after
        self._attempt = (after - 1) // protocol.SEQS_PER_ATTEMPT + 1 if after else 0

    def _clear_queue(self) -> None:
        self._queue.clear()
        self._reader.queued_bytes -= self._queued_bytes
        self._queued_bytes = 0

    def _receive(self, data: bytes) -> None:
        self._heard = True
        if self._behind:
            return  # it is in the log, which will be read
        if not self._queue:
            header = protocol.header(data)
            # The end of a run is left to `serve`, whose caller then lets go of this follower.
            if (
                header.attempt == self._attempt
                and header.seq == self._last + 1
                and header.type not in protocol.TERMINAL_TYPES
                and self._reader.send_now(data)
            ):
                self._last = header.seq
                if header.t:
                    loop_monitor.note_delivery(header.t)
                return
        if self._reader.queued_bytes > QUEUE_BYTES:
            self.fall_behind()
            return
        self._queue.append(data)
        self._queued_bytes += len(data)
        self._reader.queued_bytes += len(data)
        self._reader.serve_soon(self)

    async def serve(self, send: Send) -> None:
        """Pass on what there is; `has_ended` when that was the run's end."""
        while not self.has_ended:
            if self._behind:
                self._behind = False
                await self._catch_up(send)
            elif self._queue:
                waiting = tuple(self._queue)
                self._clear_queue()
                if not await self._pass_on(waiting, send):
                    self._behind = True
            else:
                return

    async def _catch_up(self, send: Send) -> None:
        if self._asks_row:
            end = await self._archive.ask(finish.read, self.run_id)
            if end is not None:
                await self._finish(end, send)
                return
        self._asks_row = True
        while not self.has_ended:
            page = await self._archive.read_after(self.run_id, self._last)
            # At a gap the log lost its beginning (Redis was flushed). The worker that has the run
            # writes it again, and the next event of the group leads back here.
            if not await self._pass_on(page, send) or len(page) < run_log.PAGE:
                return

    async def _finish(self, end: protocol.RunEnd, send: Send) -> None:
        """Tell the end of a run that is over, after what the log still has of it, if it has all."""
        try:
            page = await self._archive.read_after(self.run_id, self._last)
        except redis.RedisError:
            page = []  # the last event has the whole text
        await self._pass_on(page, send)
        if not self.has_ended:
            self.has_ended = True
            await send([end.encode()])

    async def _pass_on(self, entries: Iterable[bytes], send: Send) -> bool:
        """Send the events that are next in order and skip those that were sent; False at a gap."""
        texts: list[bytes] = []
        size = 0
        in_order = True
        for data in entries:
            header = protocol.header(data)
            if self._is_old(header):
                continue
            in_order = self._is_next(header)
            if not in_order:
                break
            self._advance(header)
            texts.append(data)
            size += len(data)
            if size >= SEND_BYTES:
                await send(texts)
                texts, size = [], 0
            if self.has_ended:  # by this event; or the socket left meanwhile
                break
        if texts:
            await send(texts)
        return in_order

    def _is_old(self, header: protocol.Header) -> bool:
        if header.seq == 0:
            # It tells how an attempt is waited for, which may have begun meanwhile.
            return header.attempt <= self._attempt
        return header.attempt < self._attempt or header.seq <= self._last

    def _is_next(self, header: protocol.Header) -> bool:
        if header.seq in (0, protocol.first_seq(header.attempt)):
            return True
        return header.attempt == self._attempt and header.seq == self._last + 1

    def _advance(self, header: protocol.Header) -> None:
        if header.seq:
            self._last, self._attempt = header.seq, header.attempt
        if header.type in protocol.TERMINAL_TYPES:
            self.has_ended = True
