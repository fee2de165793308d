"""Following a run from a socket: live and replayed by the same code, without gaps or duplicates.

A follower first joins the run's group, and drops the events of the group meanwhile. Then it reads the
row, in case the run has ended, and the log after its cursor. From then on the next event in order is
written to the socket in the callback that brings it, as long as the socket takes it. A gap in the
numbers, a budget that is used up and a lost connection to Redis have the same cure: read the row and
the log again.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable
from typing import ParamSpec, TypeVar
from uuid import UUID

import redis

from chat import protocol
from chat.errors import ChatError
from chat.runs import finish
from chat.streaming import groups
from chat.streaming import log as run_log
from chat.web.outgoing import UNREACHABLE, Outgoing
from chatproject.lib import db, loop_monitor
from chatproject.lib.pubsub.layer import get_layer
from chatproject.lib.pubsub.raw import Attachment
from chatproject.lib.redis.clients import async_client

# Seconds for Redis to confirm a subscription, in which the socket's other events wait. Then the socket
# tries again.
ATTACH_WITHIN = 3.0

SEND_BYTES = 64 * 1024  # sent to a client before the follower waits for it

# Rows and pages of logs that are read at a time for all sockets of a process. More would not be
# faster, as Python's threads take turns; but the event loop would wait for its own turn too long.
MAX_READS = 3

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")


class ReplayReader:
    """Reads rows and logs of runs for the sockets of one event loop, MAX_READS at a time."""

    def __init__(self) -> None:
        self._client = async_client()
        self._turns = asyncio.Semaphore(MAX_READS)

    async def call(self, fn: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """`db.run`, when it is the caller's turn."""
        async with self._turns:
            return await db.run(fn, *args, **kwargs)

    async def read_after(self, run_id: UUID, after: int) -> list[bytes]:
        """`run_log.read_after`, when it is the caller's turn. Raises redis.RedisError."""
        async with self._turns:
            return await run_log.read_after(self._client, run_id, after)

    async def close(self) -> None:
        await self._client.aclose()


_readers: dict[asyncio.AbstractEventLoop, ReplayReader] = {}


def replay_reader() -> ReplayReader:
    """Return the reader that all sockets of the running event loop share."""
    loop = asyncio.get_running_loop()
    if loop not in _readers:
        _readers[loop] = ReplayReader()
    return _readers[loop]


async def close_clients() -> None:
    """Close the reader of the running event loop, before the loop ends."""
    reader = _readers.pop(asyncio.get_running_loop(), None)
    if reader is not None:
        await reader.close()


class Cursor:
    """The number of the last event of a run that was sent (0: none), and the attempt it belongs to."""

    __slots__ = ("attempt", "last")

    def __init__(self, last: int) -> None:
        self.last = last
        self.attempt = (last - 1) // protocol.SEQS_PER_ATTEMPT + 1 if last else 0

    def has_passed(self, header: protocol.Header) -> bool:
        """Whether an event was sent, or is of an attempt that has been replaced."""
        if header.seq == 0:
            # A queue position, which is out of date as soon as its attempt has begun.
            return header.attempt <= self.attempt
        return header.attempt < self.attempt or header.seq <= self.last

    def advance(self, header: protocol.Header) -> bool:
        """Move on to an event if it is the next in order; False at a gap."""
        if header.seq == 0:
            return True
        is_next = header.attempt == self.attempt and header.seq == self.last + 1
        if not is_next and header.seq != protocol.first_seq(header.attempt):
            return False
        self.last, self.attempt = header.seq, header.attempt
        return True


class Follower:
    """One socket's view of one run; `is_new` when the run was stored a moment ago.

    The run exists, so a failure to follow it is no error for the user: the socket's pump tries again
    until Redis and the database are reachable.

    `shared` is the conversation, if the user is only its reader: the events are then those of
    protocol.for_reader, and each time that the row is read `may_read` is called, which raises ChatError when the user
    may no longer read it.

    `report` is called once if the first try fails. `followed` are the followers of the socket by run:
    from `join` to `leave` this one is among them.
    """

    def __init__(
        self,
        run_id: UUID,
        after: int,
        *,
        followed: dict[UUID, Follower],
        outgoing: Outgoing,
        is_new: bool = False,
        report: Callable[[], None] | None = None,
        shared: UUID | None = None,
        may_read: Callable[[], object] | None = None,
    ) -> None:
        self._run_id = run_id
        self.shared = shared
        self._may_read = may_read
        self._report = report
        self._followed = followed
        self._outgoing = outgoing
        self._reader = replay_reader()
        self._cursor = Cursor(after)
        self._queue: deque[bytes] = deque()
        self._queued_bytes = 0
        self._behind = True
        # The log of a new run is complete, even if the run has ended meanwhile: its row is read only
        # when the log, too, may have expired.
        self._reads_row = not is_new
        self._has_ended = False
        self._received_any = False  # since the last `recheck`
        self._attachment: Attachment | None = None

    def join(self) -> None:
        """Have the socket's pump join the run's group, and try again until Redis is reachable."""
        self._followed[self._run_id] = self
        self._outgoing.serve_soon(self.serve)

    async def leave(self) -> None:
        """Leave the group and drop the pending events; without effect when done before."""
        self._has_ended = True
        self._clear_queue()
        if self._followed.get(self._run_id) is self:
            del self._followed[self._run_id]
        if self._attachment is not None:
            await self._attachment.detach()

    def rewind(self, after: int, report: Callable[[], None] | None = None) -> None:
        """Go back (or on) to a cursor that the client named; `report` as at the beginning."""
        self._cursor = Cursor(after)
        self._report = report
        self.fall_behind()

    def recheck(self) -> None:
        """Read the row and the log, if nothing was received since the last call."""
        if self._received_any and self.shared is None:
            self._received_any = False
        else:
            self.fall_behind()

    def fall_behind(self) -> None:
        """Read the row and the log again before anything else is sent."""
        self._clear_queue()
        self._behind = self._reads_row = True
        self._outgoing.serve_soon(self.serve)

    def _clear_queue(self) -> None:
        self._queue.clear()
        self._outgoing.release(self._queued_bytes)
        self._queued_bytes = 0

    def _receive(self, data: bytes) -> None:
        self._received_any = True
        if self._behind:
            return  # it is in the log, which will be read
        if not self._queue:
            header = protocol.header(data)
            cursor = self._cursor
            # The end of a run is left to `serve`, which then leaves the group.
            if (
                header.attempt == cursor.attempt
                and header.seq == cursor.last + 1
                and header.type not in protocol.TERMINAL_TYPES
                and self.shared is None
                and self._outgoing.write_now(data)
            ):
                cursor.last = header.seq
                if header.t:
                    loop_monitor.note_delivery(header.t)
                return
        if not self._outgoing.reserve(len(data)):
            self.fall_behind()
            return
        self._queue.append(data)
        self._queued_bytes += len(data)
        self._outgoing.serve_soon(self.serve)

    async def serve(self) -> None:
        """Send the pending events, as the socket's pump; leave after the run's last event."""
        try:
            while not self._has_ended:
                if self._attachment is None:
                    # From here on nothing is missed. A socket that ends cancels its pump, and with it
                    # an attachment that Redis has not confirmed.
                    async with asyncio.timeout(ATTACH_WITHIN):
                        self._attachment = await get_layer().attach(
                            groups.run_group(self._run_id), self._receive, self.fall_behind
                        )
                elif self._behind:
                    self._behind = False
                    await self._catch_up()
                    self._report = None
                elif self._queue:
                    pending = tuple(self._queue)
                    self._clear_queue()
                    if not await self._send_in_order(pending):
                        self._behind = True
                else:
                    return
        except ChatError:
            # The event about it was lost.
            assert self.shared is not None
            self._outgoing.put(protocol.ShareEnded(conversation=self.shared).encode())
        except UNREACHABLE:
            if self._report is not None:
                self._report()
                self._report = None
            self.fall_behind()
            raise
        await self.leave()

    async def _catch_up(self) -> None:
        end = None
        if self._may_read is not None:
            await self._reader.call(self._may_read)
        if self._reads_row:
            try:
                end = await self._reader.call(finish.read, self._run_id)
            except db.UNREACHABLE as error:
                # The events in Redis do not wait for the database. `recheck` reads the row again.
                logger.warning("a run is followed without its row: %s", error)
                if self._report is not None:
                    self._report()
                    self._report = None
        self._reads_row = True
        if end is not None:
            await self._finish(end)
            return
        while not self._has_ended:
            page = await self._reader.read_after(self._run_id, self._cursor.last)
            # At a gap the log lost its beginning (Redis was flushed). The worker that has the run
            # writes it again, and the next event of the group leads back here.
            if not await self._send_in_order(page) or len(page) < run_log.PAGE:
                return

    async def _finish(self, end: protocol.RunEnd) -> None:
        """Send the last event of a run, after the rest of its log, if that is complete."""
        try:
            page = await self._reader.read_after(self._run_id, self._cursor.last)
        except redis.RedisError:
            page = []  # the last event has the whole text
        await self._send_in_order(page)
        if not self._has_ended:
            self._has_ended = True
            data = end.encode()
            shown = data if self.shared is None else protocol.for_reader(data)
            await self._outgoing.send([shown] if shown is not None else [])

    async def _send_in_order(self, entries: Iterable[bytes]) -> bool:
        """Send the events that are next in order and skip those that were sent; False at a gap."""
        texts: list[bytes] = []
        size = 0
        is_in_order = True
        for data in entries:
            header = protocol.header(data)
            is_end = header.type in protocol.TERMINAL_TYPES
            if self._cursor.has_passed(header):
                # A client that named a cursor beyond the run's events receives its end nevertheless.
                if not is_end:
                    continue
            elif not self._cursor.advance(header):
                is_in_order = False
                break
            elif is_end and self._outgoing.short_ends and self.shared is None:
                data = protocol.shortened(data)
            if self.shared is not None:
                shown = protocol.for_reader(data)
                if shown is None:
                    continue
                data = shown
            self._has_ended = self._has_ended or is_end
            texts.append(data)
            size += len(data)
            if size >= SEND_BYTES:
                await self._outgoing.send(texts)
                texts, size = [], 0
            if self._has_ended:  # by this event; or the socket left meanwhile
                break
        if texts:
            await self._outgoing.send(texts)
        return is_in_order
