"""How a socket follows a run: live and replayed by the same code, nothing missing, nothing doubled.

A follower first joins the run's group, and what the group brings is kept aside. Then it asks the
row whether the run is over, and reads the log after its cursor. Only then does it pass on what the
group brought, without what it has had already. A gap in the numbers, a queue that grew too long and
a lost connection to Redis all have the same cure: ask the row and read the log again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from uuid import UUID

import redis
import redis.asyncio

from chat import ending, events, runlog
from chatproject.lib import channel_layer, db

# What may wait for one socket per run. Beyond it the follower forgets what waits and reads the log
# when the client has caught up: a slow client costs no more memory than this.
QUEUE_BYTES = 256 * 1024


class Follower:
    """One socket's view of one run. `wake` is called when there is something for `serve` to do."""

    def __init__(
        self,
        run_id: UUID,
        after: int,
        *,
        client: redis.asyncio.Redis,
        wake: Callable[[], None],
    ) -> None:
        self.run_id = run_id
        self.is_over = False
        self._last = after
        self._attempt = (after - 1) // events.SEQS_PER_ATTEMPT + 1 if after else 0
        self._client = client
        self._wake = wake
        self._queue: deque[bytes] = deque()
        self._queued_bytes = 0
        self._behind = True
        self._attachment: channel_layer.Attachment | None = None

    async def join(self) -> None:
        """Join the run's group; from here on nothing is missed."""
        self._attachment = await channel_layer.get_layer().attach(
            events.run_group(self.run_id), self._receive, self.fall_behind
        )
        self._wake()

    async def leave(self) -> None:
        """Leave the group and forget what waits."""
        self.is_over = True
        self._queue.clear()
        if self._attachment is not None:
            await self._attachment.detach()

    def rewind(self, after: int) -> None:
        """Go back (or on) to a cursor that the client named."""
        self._last = after
        self._attempt = (after - 1) // events.SEQS_PER_ATTEMPT + 1 if after else 0
        self.fall_behind()

    def fall_behind(self) -> None:
        """Ask the row and read the log again before anything else is passed on."""
        self._queue.clear()
        self._queued_bytes = 0
        self._behind = True
        self._wake()

    def _receive(self, data: bytes) -> None:
        if self._queued_bytes > QUEUE_BYTES:
            self.fall_behind()
            return
        self._queue.append(data)
        self._queued_bytes += len(data)
        self._wake()

    async def serve(self, send: Callable[[bytes], Awaitable[None]]) -> None:
        """Pass on what there is; `is_over` when that was the run's end."""
        while not self.is_over:
            if self._behind:
                self._behind = False
                await self._catch_up(send)
            elif self._queue:
                data = self._queue.popleft()
                self._queued_bytes -= len(data)
                if not await self._pass_on(data, send):
                    self._behind = True
            else:
                return

    async def _catch_up(self, send: Callable[[bytes], Awaitable[None]]) -> None:
        end = await db.run(ending.read, self.run_id)
        if end is not None:
            await self._finish(end, send)
            return
        while entries := await runlog.read_after(self._client, self.run_id, self._last):
            for data in entries:
                if self.is_over or not await self._pass_on(data, send):
                    # The log lost its beginning (Redis was flushed). The worker that has the run
                    # writes it again, and the next event of the group leads back here.
                    return

    async def _finish(self, end: events.RunEnd, send: Callable[[bytes], Awaitable[None]]) -> None:
        """Tell the end of a run that is over, after what the log still has of it, if it has all."""
        try:
            entries = await runlog.read_after(self._client, self.run_id, self._last)
        except redis.RedisError:
            entries = []  # the last event has the whole text
        for data in entries:
            if self.is_over or not await self._pass_on(data, send):
                break
        if not self.is_over:
            self.is_over = True
            await send(end.encode())

    async def _pass_on(self, data: bytes, send: Callable[[bytes], Awaitable[None]]) -> bool:
        """Send an event that is next in order and skip one that was sent; False at a gap."""
        header = events.header(data)
        if header.attempt < self._attempt or header.seq <= self._last:
            return True
        if header.seq not in (self._last + 1, events.first_seq(header.attempt)):
            return False
        if header.attempt > self._attempt and header.seq != events.first_seq(header.attempt):
            return False
        self._last, self._attempt = header.seq, header.attempt
        if header.type in events.TERMINAL_TYPES:
            self.is_over = True
        await send(data)
        return True
