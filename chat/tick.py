"""How the events of a worker's runs leave it: together, in ticks.

Each run of the process has a `RunWriter`, into which generate.py puts what the model says. The
`Ticker` of the process writes for all of them at once: one pipeline per Redis host and tick, which
appends to the logs, publishes to the followers and asks for stop flags. A tick lasts 10 ms while
few runs are active and stretches to 100 ms under load; a run's first token does not wait for it.

An event is encoded once. It is kept until its run ends, so that a log that Redis lost (a restart,
FLUSHALL) is written again from here with the same numbers.

The lease decides whether this worker may still speak for a run. It is renewed every RENEW_SECONDS by
compare-and-set; one that ran out (this process stood still, Redis was away) is taken again only if
the database says that nobody else took or ended the run. See docs/architecture.md.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from uuid import UUID

import redis.asyncio
from django.conf import settings

from chat import events, runlog
from chat.models import Run
from chatproject.lib import channel_layer, db
from chatproject.lib.redis import async_client

logger = logging.getLogger(__name__)

# Seconds.
SHORTEST_TICK = 0.010
LONGEST_TICK = 0.100
TICK_PER_RUN = 0.0005
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


class RunWriter:
    """The events of one attempt of a run, on their way to its log and its followers.

    `interrupt` is called once when the run should stop being made: then `stop_requested` or `lost`
    (another worker has the run, or it is over) says why.
    """

    def __init__(self, run_id: UUID, attempt: int, wake: Callable[[bool], None]) -> None:
        self.run_id = run_id
        self.attempt = attempt
        self.stop_requested = False
        self.lost = False
        self.interrupt: Callable[[], None] = _do_nothing
        self.lease_until = 0.0  # by the loop's clock
        self.events: list[bytes] = []
        self.logged = 0
        self.published = 0
        self.closed: asyncio.Future[None] | None = None
        self._wake = wake
        self._first_seq = events.first_seq(attempt)
        self._kind: type[events.TextDelta | events.ReasoningDelta] = events.TextDelta
        self._pending: list[str] = []
        self._spoke = False

    @property
    def next_seq(self) -> int:
        """The number that the next event will have."""
        return self._first_seq + len(self.events)

    def seq_of(self, index: int) -> int:
        """The number of the event at an index of `events`."""
        return self._first_seq + index

    @property
    def has_news(self) -> bool:
        return (
            bool(self._pending)
            or self.published < len(self.events)
            or self.logged < len(self.events)
        )

    def start(self) -> None:
        """Tell the followers that a worker has the run."""
        self.append(events.RunStarted(run=self.run_id, attempt=self.attempt, seq=self.next_seq))

    def text(self, text: str) -> None:
        """Add to the reply."""
        self._add(events.TextDelta, text)

    def reasoning(self, text: str) -> None:
        """Add to what the model thinks aloud before it replies."""
        self._add(events.ReasoningDelta, text)

    def _add(self, kind: type[events.TextDelta | events.ReasoningDelta], text: str) -> None:
        if kind is not self._kind:
            self.seal()
            self._kind = kind
        self._pending.append(text)
        urgent = not self._spoke
        self._spoke = True
        self._wake(urgent)

    def seal(self) -> None:
        """Turn what was added since the last tick into an event."""
        if not self._pending:
            return
        delta = self._kind(
            run=self.run_id, attempt=self.attempt, seq=self.next_seq, text="".join(self._pending)
        )
        self._pending.clear()
        self.events.append(delta.encode())

    def append(self, event: events.RunEvent) -> None:
        """Add an event of any kind; its number must be `next_seq` after `seal`."""
        self.events.append(event.encode())
        self._wake(True)

    def lose(self) -> None:
        """Stop speaking for the run: somebody else has it, or it is over."""
        self.lost = True
        self.interrupt()


def _do_nothing() -> None:
    return None


class Ticker:
    """Writes the events of all runs of this process; belongs to one event loop."""

    def __init__(self) -> None:
        self._writers: dict[UUID, RunWriter] = {}
        self._redis = async_client()
        # Hosts of the channel layer that are not the Redis of the logs, by index.
        self._others: dict[int, redis.asyncio.Redis] = {
            index: async_client(url)
            for index, url in enumerate(channel_layer.host_urls())
            if url != settings.REDIS_URL
        }
        self._news = asyncio.Event()
        self._urgent = asyncio.Event()
        self._renewed_at = 0.0
        self._polled_at = 0.0
        self._task: asyncio.Task[None] | None = None

    async def open(self, run_id: UUID, attempt: int) -> RunWriter:
        """Take the lease of an attempt that was just claimed, and begin to write its events."""
        writer = RunWriter(run_id, attempt, self._wake)
        now = asyncio.get_running_loop().time()
        try:
            await self._redis.set(
                runlog.lease_key(run_id), attempt, px=int(runlog.LEASE_SECONDS * 1000)
            )
            writer.lease_until = now + runlog.LEASE_SECONDS
        except redis.RedisError:
            logger.warning("run %s begins without a lease: Redis is away", run_id)
        self._writers[run_id] = writer
        writer.start()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._tick(), name="ticker")
        return writer

    async def close(self, writer: RunWriter) -> None:
        """Write what is left of a run that is over, and forget it.

        When Redis is away for longer than CLOSE_PATIENCE the last events are dropped: followers
        learn the end from the row when they are connected again.
        """
        if self._writers.get(writer.run_id) is writer and not writer.lost:
            writer.closed = asyncio.get_running_loop().create_future()
            self._wake(True)
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
        batch = _Batch(self._redis, self._others)
        if writer.lost or writer.lease_until <= asyncio.get_running_loop().time():
            return  # it may not speak
        batch.add(writer)
        try:
            await batch.execute()
        except redis.RedisError as error:
            logger.warning("events could not be written: %s: %s", type(error).__name__, error)

    def forget(self, writer: RunWriter) -> None:
        """Write nothing more for a run."""
        if self._writers.get(writer.run_id) is writer:
            del self._writers[writer.run_id]

    async def shut(self) -> None:
        """End the ticks and close the connections."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        for client in (self._redis, *self._others.values()):
            await client.aclose()

    def _wake(self, urgent: bool) -> None:
        self._news.set()
        if urgent:
            self._urgent.set()

    async def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        written_at = 0.0
        while self._writers:
            await _wait(self._news, POLL)
            if self._news.is_set() and not self._urgent.is_set():
                await _wait(self._urgent, written_at + self._interval() - loop.time())
            self._news.clear()
            self._urgent.clear()
            written_at = loop.time()
            try:
                await self._write()
            except (redis.RedisError, *db.UNREACHABLE) as error:
                # Nothing is lost: the writers keep their events, and the next tick tries again.
                logger.warning("events wait: %s: %s", type(error).__name__, error)
                await asyncio.sleep(PAUSE)
                self._news.set()
            except Exception:
                # The ticks of all runs must outlive a fault in one of them.
                logger.exception("a tick failed")
                await asyncio.sleep(PAUSE)
                self._news.set()

    def _interval(self) -> float:
        return min(LONGEST_TICK, max(SHORTEST_TICK, TICK_PER_RUN * len(self._writers)))

    async def _write(self) -> None:
        now = asyncio.get_running_loop().time()
        writers = list(self._writers.values())
        if now - self._renewed_at >= runlog.RENEW_SECONDS or any(
            writer.lease_until <= now for writer in writers
        ):
            await self._renew(writers)
        speaking = [writer for writer in self._writers.values() if writer.lease_until > now]
        batch = _Batch(self._redis, self._others)
        for writer in speaking:
            batch.add(writer)
        if now - self._polled_at >= POLL:
            batch.poll(speaking)
            self._polled_at = now
        await batch.execute()
        if any(writer.logged < len(writer.events) for writer in speaking):
            self._wake(True)  # a log was lost: write it again at once

    async def _renew(self, writers: list[RunWriter]) -> None:
        now = asyncio.get_running_loop().time()
        ttl = int(runlog.LEASE_SECONDS * 1000)
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.eval(
            RENEW,
            len(writers),
            *[runlog.lease_key(writer.run_id) for writer in writers],
            *[writer.attempt for writer in writers],
            ttl,
        )
        for writer in writers:
            pipeline.expire(runlog.log_key(writer.run_id), runlog.LOG_SECONDS)
        answers = (await pipeline.execute())[0]
        gone: list[RunWriter] = []
        for writer, answer in zip(writers, answers, strict=True):
            if answer == 1:
                writer.lease_until = now + runlog.LEASE_SECONDS
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
            if writer.run_id in ours and await self._redis.set(
                runlog.lease_key(writer.run_id),
                writer.attempt,
                px=int(runlog.LEASE_SECONDS * 1000),
                nx=True,
            ):
                writer.lease_until = now + runlog.LEASE_SECONDS
            elif writer.closed is None:
                self._lose(writer)
            else:
                # It is over by our own hand; only its last event is still to be told.
                writer.lease_until = now + runlog.LEASE_SECONDS

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


class _Batch:
    """The commands of one tick and what their answers mean."""

    def __init__(self, client: redis.asyncio.Redis, others: dict[int, redis.asyncio.Redis]) -> None:
        self._others = others
        self._pipeline = client.pipeline(transaction=False)
        self._answers: list[Callable[[object], None]] = []
        # Pipelines to other hosts of the channel layer, with their own answers.
        self._elsewhere: dict[
            int, tuple[redis.asyncio.client.Pipeline, list[Callable[[object], None]]]
        ] = {}

    def add(self, writer: RunWriter) -> None:
        """Log and publish a writer's news."""
        writer.seal()
        key = runlog.log_key(writer.run_id)
        begins = writer.logged == 0
        for index in range(writer.logged, len(writer.events)):
            # Without its first events a log must not come into being: its readers would take
            # what is missing for lost. NOMKSTREAM then answers nil, and all is written again.
            options = () if index == 0 else ("NOMKSTREAM",)
            self._pipeline.execute_command(
                "XADD",
                key,
                *options,
                runlog.entry_id(writer.seq_of(index)),
                "e",
                writer.events[index],
            )
            self._answers.append(_on_logged(writer, index))
        if begins and writer.events:
            self._pipeline.execute_command("EXPIRE", key, runlog.LOG_SECONDS)
            self._answers.append(_ignore)
        group = events.run_group(writer.run_id)
        for index in range(writer.published, len(writer.events)):
            self._publish(writer, index, group)
        if writer.closed is not None:
            self._pipeline.execute_command("EXPIRE", key, runlog.ENDED_LOG_SECONDS)
            self._answers.append(_ignore)
            self._pipeline.execute_command(
                "DEL", runlog.lease_key(writer.run_id), runlog.stop_key(writer.run_id)
            )
            self._answers.append(_on_closed(writer))

    def _publish(self, writer: RunWriter, index: int, group: str) -> None:
        host, command = channel_layer.raw_command(group, writer.events[index])
        pipeline, answers = self._pipeline, self._answers
        if host in self._others:
            if host not in self._elsewhere:
                self._elsewhere[host] = (self._others[host].pipeline(transaction=False), [])
            pipeline, answers = self._elsewhere[host]
        pipeline.execute_command(*command)
        answers.append(_on_published(writer, index))

    def poll(self, writers: list[RunWriter]) -> None:
        """Ask which runs should stop."""
        if not writers:
            return
        self._pipeline.execute_command(
            "MGET", *[runlog.stop_key(writer.run_id) for writer in writers]
        )
        self._answers.append(_on_flags(writers))

    async def execute(self) -> None:
        """Send everything and hand out the answers. Raises redis.RedisError."""
        await _execute(self._pipeline, self._answers)
        for host, (pipeline, answers) in self._elsewhere.items():
            try:
                await _execute(pipeline, answers)
            except redis.RedisError as error:
                # Followers on that host re-read the log when they are connected again.
                logger.warning("channel layer host %d does not take events: %s", host, error)
                for answer in answers:
                    answer(0)


async def _execute(
    pipeline: redis.asyncio.client.Pipeline, answers: list[Callable[[object], None]]
) -> None:
    if not answers:
        return
    replies = await pipeline.execute(raise_on_error=False)
    for answer, reply in zip(answers, replies, strict=True):
        answer(reply)


def _on_logged(writer: RunWriter, index: int) -> Callable[[object], None]:
    def answer(reply: object) -> None:
        if reply is None:
            writer.logged = 0
        elif isinstance(reply, redis.ResponseError) and "equal or smaller" not in str(reply):
            raise reply
        elif writer.logged == index:
            # An id that is there already was written by a pipeline whose answer got lost.
            writer.logged = index + 1

    return answer


def _on_published(writer: RunWriter, index: int) -> Callable[[object], None]:
    def answer(reply: object) -> None:
        if isinstance(reply, Exception):
            raise reply
        writer.published = max(writer.published, index + 1)

    return answer


def _on_closed(writer: RunWriter) -> Callable[[object], None]:
    def answer(reply: object) -> None:
        if writer.closed is not None and not writer.closed.done():
            writer.closed.set_result(None)

    return answer


def _on_flags(writers: list[RunWriter]) -> Callable[[object], None]:
    def answer(reply: object) -> None:
        if not isinstance(reply, list):
            raise redis.RedisError(f"MGET answered {reply!r}")
        for writer, flag in zip(writers, reply, strict=True):
            if flag is not None and not writer.stop_requested:
                writer.stop_requested = True
                writer.interrupt()

    return answer


def _ignore(reply: object) -> None:
    return None


async def _wait(event: asyncio.Event, seconds: float) -> None:
    """Wait for an event, at most so long."""
    if event.is_set() or seconds <= 0:
        return
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return


_tickers: dict[asyncio.AbstractEventLoop, Ticker] = {}


def ticker() -> Ticker:
    """The ticker of the running event loop."""
    loop = asyncio.get_running_loop()
    if loop not in _tickers:
        _tickers[loop] = Ticker()
    return _tickers[loop]


async def shut() -> None:
    """Close the ticker of the running event loop, if it has one."""
    found = _tickers.pop(asyncio.get_running_loop(), None)
    if found is not None:
        await found.shut()
