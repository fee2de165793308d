"""When the events of a worker's runs are written: together, in ticks.

Each run of the process has a `RunWriter`. The `Ticker` of the process writes for all of them: one
write per Redis host and tick, which appends to the logs, publishes to the followers and asks for
stop flags. A tick lasts 10 ms while few runs are active and stretches to 100 ms under load. A run's
first token and its end do not wait for it.

A tick that is stretched has several parts, and each run its own among them, so that neither this
loop nor those of the web processes have to do all the work at once. What a provider sends in
between would wait for the tick anyway, so reading waits too (`RunWriter.hold`): the kernel collects
it, and all of it is one read.

Events are kept until their run ends, so that a log that Redis lost (a restart, FLUSHALL) is written
again from here with the same numbers.

The lease decides whether this worker may still speak for a run. It is renewed every RENEW_SECONDS by
compare-and-set; one that ran out (this process stood still, Redis was away) is taken again only if
the database says that nobody else took or ended the run. See docs/architecture.md.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from uuid import UUID

import redis
from django.conf import settings

from chat.models import Run
from chat.streaming.batch import Batch
from chat.streaming.leases import KEY_SECONDS, LEASE, LEASE_SECONDS, RENEW_SECONDS
from chat.streaming.writer import RunWriter
from chatproject.lib import db
from chatproject.lib.pubsub.layer import host_urls
from chatproject.lib.redis.clients import CONNECT_TIMEOUT, SOCKET_TIMEOUT
from chatproject.lib.redis.pipeline import Pipeline, pack

logger = logging.getLogger(__name__)

# Seconds.
SHORTEST_TICK = 0.010
LONGEST_TICK = 0.100
TICK_PER_RUN = 0.0005
PART = 0.050  # of a stretched tick
WORTH_HOLDING = 0.050  # a tick that is shorter seldom brings two tokens of a run
POLL = 0.100  # how often stop flags are looked at, whether or not tokens flow
PAUSE = 0.5  # after Redis or the database did not answer
CLOSE_PATIENCE = 5.0  # how long a run's last event may wait for a Redis that is away

# Renews each lease that still holds its attempt. Answers 1 (renewed), 0 (gone) or -1 (another's).
RENEW = """
local answers = {}
for i, key in ipairs(KEYS) do
  local held = redis.call('GET', key)
  if held == ARGV[i] then
    redis.call('PEXPIRE', key, ARGV[#ARGV])
    answers[i] = 1
  elseif held then
    answers[i] = -1
  else
    answers[i] = 0
  end
end
return answers
"""


class Ticker:
    """Writes the events of all runs of this process; belongs to one event loop."""

    def __init__(self) -> None:
        self._writers: dict[UUID, RunWriter] = {}
        self._redis = _pipeline(settings.REDIS_URL)
        # Hosts of the channel layer that are not the Redis of the logs, by index.
        self._others: dict[int, Pipeline] = {
            index: _pipeline(url)
            for index, url in enumerate(host_urls())
            if url != settings.REDIS_URL
        }
        # In order: what has news, what of it shall not wait, and whose reading waits for its part.
        self._news: dict[RunWriter, None] = {}
        self._urgent: dict[RunWriter, None] = {}
        self._held: dict[RunWriter, Callable[[], None]] = {}
        self._opened = 0
        self._part = 0
        self._part_at = 0.0  # when the next part is due
        self._renewed_at = 0.0
        self._polled_at = 0.0
        self._is_troubled = False  # the last write failed
        self._bell: asyncio.Future[None] | None = None  # rings while the ticks rest
        self._rounds: list[asyncio.Future[bool]] = []  # who waits for the end of a write
        self._task: asyncio.Task[None] | None = None

    def open(
        self, run_id: UUID, attempt: int, *, age: float, text: str = "", reasoning: str = ""
    ) -> RunWriter:
        """Begin to write the events of an attempt that was claimed `age` seconds ago.

        `text` and `reasoning` are what a later attempt goes on from. The lease is written with the
        first events; the sweeper counts on it from the claim on, for as long as a lease lasts.
        """
        if run_id in self._writers:
            self.forget(self._writers[run_id])  # of an attempt before
        writer = RunWriter(run_id, attempt, self._wake, self._hold)
        writer.part = self._opened
        self._opened += 1
        writer.lease_until = asyncio.get_running_loop().time() - age + LEASE_SECONDS
        self._writers[run_id] = writer
        writer.start(text, reasoning)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._tick(), name="ticker")
        return writer

    async def close(self, writer: RunWriter) -> None:
        """Write what is left of a run that is over, and forget it.

        When Redis is away for longer than CLOSE_PATIENCE the last events are dropped: followers
        learn the end from the row when they are connected again.
        """
        if writer.is_open and not writer.lost:
            writer.closed = asyncio.get_running_loop().create_future()
            self._wake(writer, True)
            try:
                async with asyncio.timeout(CLOSE_PATIENCE):
                    await writer.closed
            except TimeoutError:
                logger.warning("run %s: its last events could not be published", writer.run_id)
        self.forget(writer)

    async def flush(self, writer: RunWriter) -> None:
        """Write what waits for one run without waiting for the tick.

        What the tick writes at the same time counts once. While Redis is away it is only logged:
        the writer keeps its events.
        """
        while writer.has_news and self._is_heard(writer):
            written = asyncio.get_running_loop().create_future()
            self._rounds.append(written)
            self._wake(writer, True)
            if not await written:
                return

    def _is_heard(self, writer: RunWriter) -> bool:
        """Whether the next tick would write what this writer has."""
        is_ticking = self._task is not None and not self._task.done()
        is_leased = writer.lease_until > asyncio.get_running_loop().time()
        return is_ticking and is_leased and writer.is_open

    def forget(self, writer: RunWriter) -> None:
        """Write nothing more for a run."""
        if writer.is_open:
            del self._writers[writer.run_id]
            writer.is_open = False
        self._news.pop(writer, None)
        self._urgent.pop(writer, None)
        self._release([writer])

    async def shut_down(self) -> None:
        """End the ticks and close the connections."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        for pipeline in (self._redis, *self._others.values()):
            await pipeline.close()

    def _wake(self, writer: RunWriter, urgent: bool) -> None:
        if not writer.is_open:
            return
        is_first = not self._news
        self._news[writer] = None
        if urgent:
            self._urgent[writer] = None
        if urgent or is_first:
            self._ring()

    def _ring(self) -> None:
        if self._bell is not None and not self._bell.done():
            self._bell.set_result(None)

    def _hold(self, writer: RunWriter, resume: Callable[[], None]) -> bool:
        if self._is_troubled or self._interval() < WORTH_HOLDING or not writer.is_open:
            return False
        self._held[writer] = resume
        return True

    def _release(self, writers: Iterable[RunWriter]) -> bool:
        """Let the reading of these runs go on; returns whether any of them waited."""
        waiting = [resume for writer in writers if (resume := self._held.pop(writer, None))]
        for resume in waiting:
            resume()
        return bool(waiting)

    async def _tick(self) -> None:
        try:
            while self._writers:
                await self._rest()
                await self._write_safely()
        finally:
            self._end_round(written=False)

    async def _rest(self) -> None:
        """Wait until something is due."""
        loop = asyncio.get_running_loop()
        while not self._urgent:
            is_idle = not self._news and not self._held
            due = self._polled_at + POLL if is_idle else self._part_at
            if _is_due(due):
                return
            self._bell = loop.create_future()
            timer = loop.call_at(due, self._ring)
            try:
                await self._bell
            finally:
                timer.cancel()
                self._bell = None

    async def _write_safely(self) -> None:
        try:
            await self._write(await self._due())
        except (redis.RedisError, *db.UNREACHABLE) as error:
            # Nothing is lost: the writers keep their events, and the next tick tries again.
            logger.warning("events wait: %s: %s", type(error).__name__, error)
            await self._recover()
        except Exception:
            # The ticks of all runs must outlive a fault in one of them.
            logger.exception("a tick failed")
            await self._recover()
        else:
            self._is_troubled = False
            self._end_round(written=True)

    async def _recover(self) -> None:
        self._is_troubled = True
        self._end_round(written=False)
        self._release(list(self._held))
        await asyncio.sleep(PAUSE)

    def _end_round(self, *, written: bool) -> None:
        rounds, self._rounds = self._rounds, []
        for waiting in rounds:
            if not waiting.done():
                waiting.set_result(written)

    async def _due(self) -> list[RunWriter]:
        """The runs whose news are to be written now."""
        due, self._urgent = self._urgent, {}
        if not _is_due(self._part_at):
            return list(due)
        interval = self._interval()
        parts = max(1, round(interval / PART))
        self._part_at = asyncio.get_running_loop().time() + interval / parts
        self._part = (self._part + 1) % parts
        if self._release([writer for writer in self._held if writer.part % parts == self._part]):
            # One turn of the loop for the sockets, one for the tasks that read from them.
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        due.update((writer, None) for writer in self._news if writer.part % parts == self._part)
        return list(due)

    def _interval(self) -> float:
        return min(LONGEST_TICK, max(SHORTEST_TICK, TICK_PER_RUN * len(self._writers)))

    async def _write(self, due: list[RunWriter]) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        if now - self._renewed_at >= RENEW_SECONDS or any(
            writer.lease_until <= now for writer in self._writers.values()
        ):
            # A new one takes its lease with its first events; an earlier attempt's may be there yet.
            await self._renew(
                [w for w in self._writers.values() if w.is_leased or w.lease_until <= now]
            )
            now = loop.time()
        batch = Batch(self._redis, self._others)
        writing = [w for w in due if w.lease_until > now and w.is_open]
        for writer in writing:
            batch.add(writer)
        if _is_due(self._polled_at + POLL):
            batch.poll([w for w in self._writers.values() if w.lease_until > now])
            self._polled_at = now
        await batch.execute()
        for writer in writing:
            if writer.closed is not None and writer.closed.done():
                self.forget(writer)  # its lease is given back, and not to be missed
            elif not writer.has_news:
                self._news.pop(writer, None)
            elif writer.logged < len(writer.events):
                self._wake(writer, True)  # its log was lost: write it again at once

    async def _renew(self, writers: list[RunWriter]) -> None:
        now = asyncio.get_running_loop().time()
        if not writers:
            self._renewed_at = now
            return
        commands = [
            pack(
                "EVAL",
                RENEW,
                len(writers),
                *[writer.lease_key for writer in writers],
                *[writer.attempt for writer in writers],
                LEASE,
            )
        ]
        commands += [pack("EXPIRE", writer.log_key, KEY_SECONDS) for writer in writers]
        answers = (await self._redis.execute(b"".join(commands), len(commands)))[0]
        if isinstance(answers, Exception):
            raise answers
        gone: list[RunWriter] = []
        for writer, answer in zip(writers, answers, strict=True):
            if answer == 1:
                writer.lease_until = now + LEASE_SECONDS
            elif answer == 0:
                gone.append(writer)
            else:
                self._lose(writer)
        if gone:
            await self._take_again(gone)
        self._renewed_at = now

    async def _take_again(self, writers: list[RunWriter]) -> None:
        """Take leases that ran out, of runs that are still this worker's by the database."""
        ours = await db.run(_still_running, {writer.run_id: writer.attempt for writer in writers})
        now = asyncio.get_running_loop().time()
        for writer in writers:
            if writer.run_id in ours and await self._redis.command(
                "SET", writer.lease_key, writer.attempt, "PX", LEASE, "NX"
            ):
                writer.lease_until = now + LEASE_SECONDS
                writer.is_leased = True
            elif writer.is_ending and writer.closed is None:
                continue  # over, perhaps by our own hand: until that is known it says nothing
            elif writer.closed is None:
                self._lose(writer)
            else:
                # It is over by our own hand; only its last event is still to be told.
                writer.lease_until = now + LEASE_SECONDS
                writer.is_leased = True

    def _lose(self, writer: RunWriter) -> None:
        logger.warning("run %s is no more attempt %d's", writer.run_id, writer.attempt)
        self.forget(writer)
        if writer.closed is not None and not writer.closed.done():
            writer.closed.set_result(None)
        writer.lose()


def _still_running(attempts: dict[UUID, int]) -> set[UUID]:
    """Which of the runs are running in the attempt that is named with them."""
    rows = Run.objects.filter(pk__in=attempts, status=Run.Status.RUNNING)
    return {pk for pk, attempt in rows.values_list("pk", "attempt") if attempts[pk] == attempt}


def _is_due(at: float) -> bool:
    # uvloop counts whole milliseconds: less than one cannot be waited for.
    return at - asyncio.get_running_loop().time() < 0.001


def _pipeline(url: str) -> Pipeline:
    return Pipeline(url, connect_timeout=CONNECT_TIMEOUT, timeout=SOCKET_TIMEOUT)


_tickers: dict[asyncio.AbstractEventLoop, Ticker] = {}


def current_ticker() -> Ticker:
    """The ticker of the running event loop."""
    loop = asyncio.get_running_loop()
    if loop not in _tickers:
        _tickers[loop] = Ticker()
    return _tickers[loop]


async def close_ticker() -> None:
    """Close the ticker of the running event loop, if it has one."""
    found = _tickers.pop(asyncio.get_running_loop(), None)
    if found is not None:
        await found.shut_down()
