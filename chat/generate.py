"""A worker makes a reply: claim, prompt, provider, events, end.

`run` is the coroutine behind each job of the queue; hundreds of them share one event loop. What the
model says goes into the run's writer (tick.py) and into a `Reply` in memory; the database hears of
it once, at the end (ending.py).
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

from django.conf import settings
from django.utils import timezone

from billing import metering
from billing.pricing import Tokens
from chat import context, ending, events, llm, runlog, tick
from chat.models import Run
from chatproject.lib import aioworker, db

logger = logging.getLogger(__name__)

WORKER = f"{socket.gethostname()}:{os.getpid()}"  # how a run's row names the process that has it

STORE_PAUSE = 1.0  # seconds between tries to store a finished reply while Postgres is away

# A provider that ignores the cap must not fill our memory. No cap of today's models reaches this.
REPLY_MAX_CHARACTERS = 1_000_000

# How a prompt is cut when the provider counts more tokens than we did: once, twice, then give up.
SHRINKS = (1.0, 0.6, 0.3)


@dataclass(slots=True)
class Reply:
    """What a run has produced so far, and the tokens of its prompt as counted here."""

    prompt_tokens: int
    text: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    characters: int = 0
    finish_reason: str = ""
    usage: llm.Usage | None = None
    first_token_at: datetime | None = None

    def outcome(self, status: Run.Status, *, code: str = "", message: str = "") -> ending.Outcome:
        """The run's end as it stands. Usage is counted here when the provider sent none."""
        text = "".join(self.text)
        return ending.Outcome(
            status=status,
            text=text,
            reasoning="".join(self.reasoning),
            finish_reason=self.finish_reason,
            code=code,
            message=message or (events.ERRORS[code] if code else ""),
            usage=self._usage(text),
            first_token_at=self.first_token_at,
        )

    def _usage(self, text: str) -> events.Usage | None:
        if self.usage is not None:
            said = Tokens.reported(
                input=self.usage.prompt_tokens,
                cached=self.usage.cached_tokens,
                output=self.usage.completion_tokens,
                reasoning=self.usage.reasoning_tokens,
            )
            # Some gateways send zeros for what they did not count.
            if said.input and (said.output or self.first_token_at is None):
                return events.Usage(
                    prompt_tokens=said.input,
                    completion_tokens=said.output,
                    cached_tokens=said.cached,
                    reasoning_tokens=said.reasoning,
                )
        if self.first_token_at is None:
            return None  # nothing was delivered
        return ending.counted_usage(self.prompt_tokens, text, "".join(self.reasoning))


async def run(run_id: UUID, attempt: int) -> None:
    """Make the reply of a run, if this attempt of it is still to be made."""
    work = await db.run(claim, run_id, attempt)
    if work is None:
        logger.info("run %s: attempt %d is not to be made", run_id, attempt)
        return
    ticker = tick.ticker()
    writer = await ticker.open(run_id, attempt)
    try:
        await _make_and_finish(work, ticker, writer)
    except Exception:
        # Without a lease the sweeper ends the run, with the text that the log holds: all of it.
        await ticker.flush(writer)
        raise
    finally:
        ticker.forget(writer)


def claim(run_id: UUID, attempt: int) -> Run | None:
    """Take a queued run for this attempt; None if it is taken, over or stopped.

    One conditional update decides: of any number of jobs for the same attempt one goes on. What the
    run holds is kept for as long as it may take; a run that waited until its hold was gone fails.
    """
    run = db.money_transaction(_claim, run_id, attempt)
    if run is None or run.is_held:
        return run
    logger.error("run %s lost its hold while it waited", run_id)
    ended = ending.end(
        run_id=run_id,
        attempt=attempt,
        status=Run.Status.RUNNING,
        seq=events.first_seq(attempt),
        outcome=ending.failed("unavailable", events.HOLD_EXPIRED),
    )
    if ended is not None:
        runlog.publish_end(ended)
    return None


def _claim(run_id: UUID, attempt: int) -> Run | None:
    now = timezone.now()
    claimed = Run.objects.filter(pk=run_id, status=Run.Status.QUEUED, attempt=attempt - 1).update(
        status=Run.Status.RUNNING, attempt=attempt, started_at=now, worker=WORKER
    )
    if not claimed:
        return None
    run: Run = Run.objects.select_related("assistant", "model", "message__parent").get(pk=run_id)
    run.is_held = not run.most or metering.keep(run_id, now)
    return run


async def _make_and_finish(work: Run, ticker: tick.Ticker, writer: tick.RunWriter) -> None:
    reply = Reply(work.prompt_estimate)
    try:
        outcome = await _make(work, writer, reply)
    except asyncio.CancelledError as cancelled:
        reason = cancelled.args[0] if cancelled.args else ""
        await _finish(ticker, writer, _cut_short(reason, reply, work))
        if reason == aioworker.DRAINED:
            return  # the run has ended: there is nothing to put back into the queue
        raise
    if not writer.lost:
        await _finish(ticker, writer, outcome)


async def _make(work: Run, writer: tick.RunWriter, reply: Reply) -> ending.Outcome:
    """Ask the provider and pass on what it says; returns how the run ended."""
    try:
        async with asyncio.timeout(settings.RUN_SECONDS):
            for shrink in SHRINKS:
                prompt = await db.run(context.build, work, shrink=shrink)
                reply.prompt_tokens = prompt.tokens
                try:
                    await _consume(work, prompt, writer, reply)
                except (llm.ProviderRefused, llm.ProviderReported) as error:
                    delivered = reply.first_token_at is not None
                    if error.reason != "context" or shrink == SHRINKS[-1] or delivered:
                        raise
                else:
                    break
    except _Interrupted:
        return reply.outcome(Run.Status.STOPPED)
    except _TooLong:
        return reply.outcome(Run.Status.FAILED, code="limit_reached")
    except llm.ProviderError as error:
        logger.warning("run %s: %s: %s", work.id, type(error).__name__, error.detail)
        return reply.outcome(Run.Status.FAILED, code=error.code, message=error.message)
    except TimeoutError:
        return reply.outcome(Run.Status.FAILED, code="limit_reached")
    except Exception:
        # Whatever it was, the user must not wait for a reply that nobody makes.
        logger.exception("run %s failed", work.id)
        return reply.outcome(Run.Status.FAILED, code="internal")
    return reply.outcome(Run.Status.DONE)


class _Interrupted(Exception):
    """The writer asked for the run to stop being made."""


class _TooLong(Exception):
    """The provider sent more than any cap allows."""


async def _consume(work: Run, prompt: context.Prompt, writer: tick.RunWriter, reply: Reply) -> None:
    """Read the provider's stream to its end, in a task that the writer may interrupt."""
    request = llm.CompletionRequest(
        model=work.model.provider_model,
        messages=prompt.messages,
        max_tokens=prompt.max_tokens,
        temperature=work.assistant.temperature,
    )
    reading = asyncio.create_task(_read(request, writer, reply), name=f"run {work.id}")
    writer.interrupt = reading.cancel  # type: ignore[assignment] # its answer is of no use
    if writer.stop_requested or writer.lost:
        reading.cancel()
    try:
        await reading
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise  # the job itself is cancelled, not only the reading
        raise _Interrupted from None
    finally:
        writer.interrupt = _no_interrupt


def _no_interrupt() -> None:
    return None


async def _read(request: llm.CompletionRequest, writer: tick.RunWriter, reply: Reply) -> None:
    async with aclosing(llm.provider().stream(request)) as stream:
        async for batch in stream:
            for event in batch:
                _take(event, writer, reply)


def _take(event: llm.Event, writer: tick.RunWriter, reply: Reply) -> None:
    if isinstance(event, llm.TextDelta):
        text = _storable(event.text, reply)
        reply.text.append(text)
        writer.text(text)
    elif isinstance(event, llm.ReasoningDelta):
        text = _storable(event.text, reply)
        reply.reasoning.append(text)
        writer.reasoning(text)
    elif isinstance(event, llm.Finish):
        reply.finish_reason = event.reason
    elif isinstance(event, llm.Usage):
        reply.usage = event


def _storable(text: str, reply: Reply) -> str:
    if reply.first_token_at is None:
        reply.first_token_at = timezone.now()
    reply.characters += len(text)
    if reply.characters > REPLY_MAX_CHARACTERS:
        raise _TooLong
    # Postgres stores no NUL in text; a small model may well say one.
    return text.replace("\x00", "") if "\x00" in text else text


def _cut_short(reason: str, reply: Reply, work: Run) -> ending.Outcome:
    """How a run ends whose job was cancelled."""
    if reason == aioworker.STOPPED:
        return reply.outcome(Run.Status.STOPPED)
    logger.warning("run %s was cut short: %s", work.id, reason or "cancelled")
    return reply.outcome(Run.Status.FAILED, code="unavailable", message=events.INTERRUPTED)


async def _finish(ticker: tick.Ticker, writer: tick.RunWriter, outcome: ending.Outcome) -> None:
    """Store the end of a run, then tell its followers."""
    writer.seal()
    # Before the row says that the run is over its log holds all of it, for who comes in between.
    await ticker.flush(writer)
    event = await _store(writer, outcome)
    if event is None:
        logger.warning("run %s was ended by somebody else", writer.run_id)
        return
    writer.append(event)
    await ticker.close(writer)


async def _store(writer: tick.RunWriter, outcome: ending.Outcome) -> events.RunEnd | None:
    """End the run in the database; while that is away, wait for it (the lease is kept meanwhile)."""
    while True:
        try:
            return await db.run(
                ending.end,
                run_id=writer.run_id,
                attempt=writer.attempt,
                status=Run.Status.RUNNING,
                seq=writer.next_seq,
                outcome=outcome,
            )
        except db.UNREACHABLE as error:
            if writer.lost:
                raise
            logger.warning("run %s waits for the database: %s", writer.run_id, error)
            await asyncio.sleep(STORE_PAUSE)


async def _close() -> None:
    """Close what the runs of this process shared."""
    await tick.shut()
    await llm.close()


aioworker.on_shutdown(_close)
