"""Writes the events of a worker's runs in batches, one per tick.

Each run of the process has a `RunWriter`. The `Ticker` of the process writes for all of them: one
write per Redis host and tick, which appends to the logs, publishes to the followers and reads the
stop flags. A tick lasts 10 ms while few runs are active and stretches to 100 ms under load. A run's
first token and its end do not wait for it.

A stretched tick has several parts, and each run belongs to one of them, which spreads the work of
this loop and of the web processes' loops. A provider's output would wait for the tick anyway, so
reading pauses until then (`RunWriter.pause_reading`): the kernel buffers the output, and one read
returns all of it.

Events are kept until their run ends, so that a log that Redis lost (a restart, FLUSHALL) is written
again from here with the same numbers.

The lease decides whether this worker may still write for a run; every RENEW_SECONDS the ticker has
`lease_renewal` renew it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from contextvars import Context
from functools import partial
from uuid import UUID

import redis
from django.conf import settings

from chat.streaming import lease_renewal
from chat.streaming.batch import Batch
from chat.streaming.leases import LEASE_SECONDS, RENEW_SECONDS
from chat.streaming.writer import RunWriter
from chatproject.lib import db, metrics
from chatproject.lib.pubsub.layer import host_urls
from chatproject.lib.redis.clients import CONNECT_TIMEOUT, SOCKET_TIMEOUT
from chatproject.lib.redis.pipeline import Pipeline

logger = logging.getLogger(__name__)

# Seconds.
SHORTEST_TICK = 0.010
LONGEST_TICK = 0.100
TICK_PER_RUN = 0.0005
PART = 0.050  # of a stretched tick
WORTH_PAUSING = 0.050  # in a shorter tick two tokens of one run seldom arrive
POLL = 0.100  # between two reads of the stop flags, whether or not tokens arrive
PAUSE = 0.5  # after a failed write
# How long a run's last event waits for an unreachable Redis. A web process that keeps its connection
# through a silence, of up to 7.5 s (lib.pubsub.raw), has no other occasion to read the run's end; the
# next write after a failed one begins up to 3.5 s later.
CLOSE_PATIENCE = 12.0


class Ticker:
    """Writes the events of all runs of one event loop."""

    def __init__(self) -> None:
        self._writers: dict[UUID, RunWriter] = {}
        open_pipeline = partial(Pipeline, connect_timeout=CONNECT_TIMEOUT, timeout=SOCKET_TIMEOUT)
        self._redis = open_pipeline(settings.REDIS_URL)
        # Hosts of the channel layer that are not the Redis of the logs, by index.
        self._others: dict[int, Pipeline] = {
            index: open_pipeline(url)
            for index, url in enumerate(host_urls())
            if url != settings.REDIS_URL
        }
        # In order: writers with pending events, the urgent ones of them, and the paused ones.
        self._pending: dict[RunWriter, None] = {}
        self._urgent: dict[RunWriter, None] = {}
        self._paused: dict[RunWriter, Callable[[], None]] = {}
        self._opened = 0
        self._part = 0
        self._part_at = 0.0  # when the next part is due
        self._renewed_at = 0.0
        self._polled_at = 0.0
        self._is_failing = False  # the last write failed
        self._wakeup: asyncio.Future[None] | None = None  # while `_rest` waits
        self._flushes: list[asyncio.Future[bool]] = []  # for the end of the next write
        self._task: asyncio.Task[None] | None = None

    def open(
        self,
        run_id: UUID,
        attempt: int,
        *,
        age: float,
        text: str = "",
        reasoning: str = "",
        renders: bool = True,
        has_steps: bool = False,
    ) -> RunWriter:
        """Begin to write the events of an attempt that was claimed `age` seconds ago.

        The attempt continues `text` and `reasoning`. `renders`: its text is also published as HTML,
        by the caller if it `has_steps`. The lease is written with the first
        events; until then the sweeper treats a claim as a lease that began with it.
        """
        if run_id in self._writers:
            self.forget(self._writers[run_id])  # of an earlier attempt
        writer = RunWriter(run_id, attempt, self._schedule, self._pause_reading, renders=renders)
        writer.part = self._opened
        self._opened += 1
        writer.lease_until = asyncio.get_running_loop().time() - age + LEASE_SECONDS
        self._writers[run_id] = writer
        writer.start(text, reasoning, has_steps=has_steps)
        if self._task is None or self._task.done():
            # Without the context of this run, since it serves all.
            self._task = asyncio.create_task(self._tick(), name="ticker", context=Context())
        return writer

    async def close(self, writer: RunWriter) -> None:
        """Write the last events of a run that has ended, and forget it.

        If Redis is unreachable for longer than CLOSE_PATIENCE they are dropped: followers have lost
        their connections by then, and read the end from the row when they have reconnected.
        """
        if writer.is_open and not writer.lost:
            writer.closed = asyncio.get_running_loop().create_future()
            self._schedule(writer, True)
            try:
                async with asyncio.timeout(CLOSE_PATIENCE):
                    await writer.closed
            except TimeoutError:
                logger.warning("run %s: its last events could not be published", writer.run_id)
        self.forget(writer)

    async def flush(self, writer: RunWriter) -> None:
        """Write a run's pending events without waiting for the tick.

        Returns also after a failed write, which is logged: the writer keeps its events.
        """
        while writer.has_pending_events and self._would_write(writer):
            written = asyncio.get_running_loop().create_future()
            self._flushes.append(written)
            self._schedule(writer, True)
            if not await written:
                return

    def _would_write(self, writer: RunWriter) -> bool:
        """Return whether the next tick would write this writer's events."""
        is_ticking = self._task is not None and not self._task.done()
        is_leased = writer.lease_until > asyncio.get_running_loop().time()
        return is_ticking and is_leased and writer.is_open

    def forget(self, writer: RunWriter) -> None:
        """Stop writing for a run."""
        if writer.is_open:
            del self._writers[writer.run_id]
            writer.is_open = False
        self._pending.pop(writer, None)
        self._urgent.pop(writer, None)
        self._resume_reading([writer])

    async def shut_down(self) -> None:
        """End the ticks and close the connections."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        for pipeline in (self._redis, *self._others.values()):
            await pipeline.close()

    def _schedule(self, writer: RunWriter, urgent: bool) -> None:
        if not writer.is_open:
            return
        is_first = not self._pending
        self._pending[writer] = None
        if urgent:
            self._urgent[writer] = None
        if urgent or is_first:
            self._wake()

    def _wake(self) -> None:
        if self._wakeup is not None and not self._wakeup.done():
            self._wakeup.set_result(None)

    def _pause_reading(self, writer: RunWriter, resume: Callable[[], None]) -> bool:
        if self._is_failing or self._interval() < WORTH_PAUSING or not writer.is_open:
            return False
        self._paused[writer] = resume
        return True

    def _resume_reading(self, writers: Iterable[RunWriter]) -> bool:
        """Resume the paused ones of these runs; returns whether there were any."""
        paused = [resume for writer in writers if (resume := self._paused.pop(writer, None))]
        for resume in paused:
            resume()
        return bool(paused)

    async def _tick(self) -> None:
        try:
            while self._writers:
                await self._rest()
                await self._write_safely()
        finally:
            self._end_flushes(written=False)

    async def _rest(self) -> None:
        """Wait until a write is due."""
        loop = asyncio.get_running_loop()
        while not self._urgent:
            is_idle = not self._pending and not self._paused
            due = self._polled_at + POLL if is_idle else self._part_at
            if _is_due(due):
                return
            self._wakeup = loop.create_future()
            timer = loop.call_at(due, self._wake)
            try:
                await self._wakeup
            finally:
                timer.cancel()
                self._wakeup = None

    async def _write_safely(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            due = await self._due()
            began = loop.time()
            await self._write(due)
            metrics.TICK.observe(loop.time() - began)
        except (redis.RedisError, *db.UNREACHABLE) as error:
            # Nothing is lost: the writers keep their events, and the next tick tries again.
            logger.warning("events not written yet: %s: %s", type(error).__name__, error)
            await self._recover()
        except Exception:
            # A bug in the handling of one run must not stop the ticks of all.
            logger.exception("a tick failed")
            await self._recover()
        else:
            self._is_failing = False
            self._end_flushes(written=True)

    async def _recover(self) -> None:
        metrics.TICK_FAILURES.inc()
        self._is_failing = True
        self._end_flushes(written=False)
        self._resume_reading(list(self._paused))
        await asyncio.sleep(PAUSE)

    def _end_flushes(self, *, written: bool) -> None:
        flushes, self._flushes = self._flushes, []
        for flush in flushes:
            if not flush.done():
                flush.set_result(written)

    async def _due(self) -> list[RunWriter]:
        """Return the runs to write now, once the paused ones among them have read their input."""
        due, self._urgent = self._urgent, {}
        if not _is_due(self._part_at):
            return list(due)
        interval = self._interval()
        parts = max(1, round(interval / PART))
        self._part_at = asyncio.get_running_loop().time() + interval / parts
        self._part = (self._part + 1) % parts
        if self._resume_reading([w for w in self._paused if w.part % parts == self._part]):
            # One iteration of the loop for the sockets, one for the tasks that read from them.
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        due.update((writer, None) for writer in self._pending if writer.part % parts == self._part)
        return list(due)

    def _interval(self) -> float:
        return min(LONGEST_TICK, max(SHORTEST_TICK, TICK_PER_RUN * len(self._writers)))

    async def _write(self, due: list[RunWriter]) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        writers = self._writers.values()
        if now - self._renewed_at >= RENEW_SECONDS or any(w.lease_until <= now for w in writers):
            # A new writer's lease comes with its first events; an earlier attempt's may exist.
            leased = [w for w in writers if w.is_leased or w.lease_until <= now]
            if leased:
                await lease_renewal.renew(self._redis, leased, self._drop)
            self._renewed_at = now
            now = loop.time()
        batch = Batch(self._redis, self._others)
        writing = [w for w in due if w.lease_until > now and w.is_open]
        for writer in writing:
            batch.add(writer)
        if _is_due(self._polled_at + POLL):
            batch.poll([w for w in writers if w.lease_until > now])
            self._polled_at = now
        await batch.execute()
        for writer in writing:
            if writer.closed is not None and writer.closed.done():
                self.forget(writer)  # its lease is deleted, and must not be renewed
            elif not writer.has_pending_events:
                self._pending.pop(writer, None)
            elif writer.logged < len(writer.events):
                self._schedule(writer, True)  # its log was lost: write it again at once

    def _drop(self, writer: RunWriter) -> None:
        logger.warning("run %s no longer belongs to attempt %d", writer.run_id, writer.attempt)
        self.forget(writer)
        if writer.closed is not None and not writer.closed.done():
            writer.closed.set_result(None)
        writer.mark_lost()


def _is_due(at: float) -> bool:
    # uvloop counts whole milliseconds: it cannot wait for less than one.
    return at - asyncio.get_running_loop().time() < 0.001


_tickers: dict[asyncio.AbstractEventLoop, Ticker] = {}


def current_ticker() -> Ticker:
    """Return the ticker of the running event loop."""
    loop = asyncio.get_running_loop()
    if loop not in _tickers:
        _tickers[loop] = Ticker()
    return _tickers[loop]


async def close_ticker() -> None:
    """Close the ticker of the running event loop, if it has one."""
    found = _tickers.pop(asyncio.get_running_loop(), None)
    if found is not None:
        await found.shut_down()
