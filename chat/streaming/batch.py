"""One tick's batch of Redis commands for the pending events of several runs, and their answers.

All commands for a Redis host leave in one write (lib/redis_pipeline.py). Events count as written
only when Redis has confirmed them; the next tick writes the others again.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import redis

from chat.streaming import log as run_log
from chat.streaming.leases import KEY_SECONDS, LEASE_MILLISECONDS, stop_key
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
class _Pending:
    """A writer's events to log and to publish: from these indices up to `end`."""

    writer: RunWriter
    logged: int
    published: int
    end: int
    leases: bool
    closes: bool
    accepted: bool | None  # the acceptance to store, if any


class Batch:
    """The commands of one tick. `others` are the channel layer's hosts apart from the log's."""

    def __init__(self, pipeline: Pipeline, others: dict[int, Pipeline]) -> None:
        self._pipeline = pipeline
        self._others = others
        self._main = _Commands()
        self._elsewhere: dict[int, _Commands] = {}
        self._pending: list[_Pending] = []
        self._polled: list[RunWriter] = []

    def add(self, writer: RunWriter) -> None:
        """Log and publish a writer's pending events, with its lease before the first ones."""
        writer.seal()
        end, leases, closes = len(writer.events), not writer.is_leased, writer.closed is not None
        is_stored = writer.is_accepted == writer.stored_acceptance
        accepted = None if is_stored else writer.is_accepted
        pending = _Pending(writer, writer.logged, writer.published, end, leases, closes, accepted)
        self._pending.append(pending)
        if pending.leases:
            self._command("SET", writer.lease_key, writer.attempt, "PX", LEASE_MILLISECONDS)
        if accepted:
            self._command("SET", writer.accepted_key, writer.attempt, "EX", KEY_SECONDS)
        elif accepted is not None:
            self._command("DEL", writer.accepted_key)
        self._log(pending)
        self._publish(pending)
        if pending.closes:
            self._command("EXPIRE", writer.log_key, run_log.ENDED_LOG_SECONDS)
            self._command("DEL", writer.lease_key, stop_key(writer.run_id), writer.accepted_key)

    def _log(self, pending: _Pending) -> None:
        writer, main = pending.writer, self._main
        for index in range(pending.logged, pending.end):
            entry_id = run_log.entry_id(writer.seq_of(index))
            if index == 0:
                self._command("XADD", writer.log_key, entry_id, run_log.FIELD, writer.events[0])
                self._command("EXPIRE", writer.log_key, KEY_SECONDS)
            else:
                entry = bulk(entry_id.encode())
                main.parts += (writer.append_head, entry, _FIELD, bulk(writer.events[index]))
                main.count += 1

    def _publish(self, pending: _Pending) -> None:
        writer, commands = pending.writer, self._main
        if pending.published == pending.end:
            return
        if writer.host in self._others:
            commands = self._elsewhere.setdefault(writer.host, _Commands())
        for index in range(pending.published, pending.end):
            commands.parts += (writer.publish_head, bulk(writer.events[index]))
        commands.count += pending.end - pending.published

    def poll(self, writers: list[RunWriter]) -> None:
        """Read the stop flags of these runs. Call it last."""
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
        """Send the commands and record which events were written. Raises redis.RedisError."""
        answers = iter(await self._main.execute(self._pipeline))
        fault: Exception | None = None
        for pending in self._pending:
            fault = self._record(pending, answers) or fault
        for flags in answers:  # of MGET, the last command if there is one
            if isinstance(flags, Exception):
                raise flags
            self._record_stops(flags)
        for host, commands in self._elsewhere.items():
            await self._publish_elsewhere(host, commands)
        if fault is not None:
            raise fault

    def _record(self, pending: _Pending, answers: Iterator[Any]) -> Exception | None:
        """Record a writer's answers; returns Redis's last refusal."""
        writer = pending.writer
        fault = None
        if pending.leases:
            answer = next(answers)
            if isinstance(answer, Exception):
                fault = answer
            else:
                writer.is_leased = True
        if pending.accepted is not None:
            answer = next(answers)
            if isinstance(answer, Exception):
                fault = answer
            else:
                writer.stored_acceptance = pending.accepted
        for index in range(pending.logged, pending.end):
            answer = next(answers)
            if answer is None:
                writer.logged = 0
                writer.stored_acceptance = False  # lost with the log
            elif isinstance(answer, Exception) and "equal or smaller" not in str(answer):
                fault = answer
            elif writer.logged == index:
                # An id that exists already was written by a batch whose answer was lost.
                writer.logged = index + 1
            if index == 0:
                next(answers)
        if writer.host not in self._others:
            for index in range(pending.published, pending.end):
                answer = next(answers)
                if isinstance(answer, Exception):
                    fault = answer
                elif writer.published == index:
                    writer.published = index + 1
        if pending.closes:
            next(answers)
            next(answers)
            is_written = fault is None and writer.logged >= pending.end
            if is_written and writer.closed is not None and not writer.closed.done():
                writer.closed.set_result(None)
        return fault

    def _record_stops(self, flags: list[bytes | None]) -> None:
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
            # Followers on that host read the log again when they have reconnected.
            logger.warning("channel layer host %d did not accept events: %s", host, error)
        for pending in self._pending:
            if pending.writer.host == host:
                pending.writer.published = max(pending.writer.published, pending.end)
