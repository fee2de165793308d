"""What one tick writes: the commands for the news of several runs, and what their answers mean.

All commands for a Redis host leave in one write (lib/redis_pipeline.py). Nothing is counted as
written before Redis has said so; what was not is written again by the next tick.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import redis

from chat.streaming import log as run_log
from chat.streaming.leases import KEY_SECONDS, LEASE, stop_key
from chat.streaming.writer import RunWriter
from chatproject.lib.redis.pipeline import Pipeline, bulk, head, pack

logger = logging.getLogger(__name__)

_FIELD = bulk(run_log.FIELD)


@dataclass(slots=True)
class _Commands:
    """Packed commands for one host."""

    parts: list[bytes] = field(default_factory=list)
    count: int = 0

    async def execute(self, pipeline: Pipeline) -> list[Any]:
        if not self.count:
            return []
        return await pipeline.execute(b"".join(self.parts), self.count)


@dataclass(slots=True)
class _News:
    """A writer's events from these indices up to `end`, as they stood when the batch was made."""

    writer: RunWriter
    logged: int
    published: int
    end: int
    leases: bool
    closes: bool


class Batch:
    """The commands of one tick. `others` are the hosts of the channel layer beside the log's."""

    def __init__(self, pipeline: Pipeline, others: dict[int, Pipeline]) -> None:
        self._pipeline = pipeline
        self._others = others
        self._main = _Commands()
        self._elsewhere: dict[int, _Commands] = {}
        self._news: list[_News] = []
        self._polled: list[RunWriter] = []

    def add(self, writer: RunWriter) -> None:
        """Log and publish a writer's news."""
        writer.seal()
        news = _News(
            writer,
            writer.logged,
            writer.published,
            len(writer.events),
            not writer.is_leased,
            writer.closed is not None,
        )
        self._news.append(news)
        if news.leases:
            self._command("SET", writer.lease_key, writer.attempt, "PX", LEASE)
        self._log(news)
        self._publish(news)
        if news.closes:
            self._command("EXPIRE", writer.log_key, run_log.ENDED_LOG_SECONDS)
            self._command("DEL", writer.lease_key, stop_key(writer.run_id))

    def _log(self, news: _News) -> None:
        writer, main = news.writer, self._main
        for index in range(news.logged, news.end):
            entry_id = run_log.entry_id(writer.seq_of(index))
            if index == 0:
                self._command("XADD", writer.log_key, entry_id, run_log.FIELD, writer.events[0])
                self._command("EXPIRE", writer.log_key, KEY_SECONDS)
            else:
                main.parts += (
                    writer.append_head,
                    bulk(entry_id.encode()),
                    _FIELD,
                    bulk(writer.events[index]),
                )
                main.count += 1

    def _publish(self, news: _News) -> None:
        writer, commands = news.writer, self._main
        if news.published == news.end:
            return
        if writer.host in self._others:
            commands = self._elsewhere.setdefault(writer.host, _Commands())
        for index in range(news.published, news.end):
            commands.parts += (writer.publish_head, bulk(writer.events[index]))
        commands.count += news.end - news.published

    def poll(self, writers: list[RunWriter]) -> None:
        """Ask which runs should stop."""
        if not writers:
            return
        self._polled = writers
        self._main.parts.append(head(1 + len(writers), "MGET"))
        self._main.parts += [writer.stop_key for writer in writers]
        self._main.count += 1

    def _command(self, *arguments: str | bytes | int) -> None:
        self._main.parts.append(pack(*arguments))
        self._main.count += 1

    async def execute(self) -> None:
        """Send everything and take note of what was written. Raises redis.RedisError."""
        answers = iter(await self._main.execute(self._pipeline))
        fault: Exception | None = None
        for news in self._news:
            fault = self._note(news, answers) or fault
        for flags in answers:  # of MGET, which is the last command if it is there
            if isinstance(flags, Exception):
                raise flags
            self._note_flags(flags)
        for host, commands in self._elsewhere.items():
            await self._publish_elsewhere(host, commands)
        if fault is not None:
            raise fault

    def _note(self, news: _News, answers: Iterator[Any]) -> Exception | None:
        """Take note of the answers that are a writer's; returns what Redis refused."""
        writer = news.writer
        fault = None
        if news.leases:
            answer = next(answers)
            if isinstance(answer, Exception):
                fault = answer
            else:
                writer.is_leased = True
        for index in range(news.logged, news.end):
            answer = next(answers)
            if answer is None:
                writer.logged = 0
            elif isinstance(answer, Exception) and "equal or smaller" not in str(answer):
                fault = answer
            elif writer.logged == index:
                # An id that is there already was written by a batch whose answer got lost.
                writer.logged = index + 1
            if index == 0:
                next(answers)
        if writer.host not in self._others:
            for index in range(news.published, news.end):
                answer = next(answers)
                if isinstance(answer, Exception):
                    fault = answer
                elif writer.published == index:
                    writer.published = index + 1
        if news.closes:
            next(answers)
            next(answers)
            is_written = fault is None and writer.logged >= news.end
            if is_written and writer.closed is not None and not writer.closed.done():
                writer.closed.set_result(None)
        return fault

    def _note_flags(self, flags: list[bytes | None]) -> None:
        if flags.count(None) == len(flags):
            return
        for writer, flag in zip(self._polled, flags, strict=True):
            if flag is not None and not writer.stop_requested:
                writer.stop_requested = True
                writer.interrupt()

    async def _publish_elsewhere(self, host: int, commands: _Commands) -> None:
        try:
            answers = await commands.execute(self._others[host])
            refused = next((answer for answer in answers if isinstance(answer, Exception)), None)
            if refused is not None:
                raise refused
        except redis.RedisError as error:
            # Followers on that host re-read the log when they are connected again.
            logger.warning("channel layer host %d does not take events: %s", host, error)
        for news in self._news:
            if news.writer.host == host:
                news.writer.published = max(news.writer.published, news.end)
