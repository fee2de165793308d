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
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, ParamSpec, TypeVar
from uuid import UUID

from django.conf import settings
from django.utils import timezone

from billing.metering import settlement
from billing.metering.pricing import Tokens
from chat import errors, protocol
from chat.conversations import prompt_builder
from chat.llm.decoder import Event, Finish, ReasoningDelta, TextDelta, Usage
from chat.llm.errors import ProviderError, ProviderRefused, ProviderReported
from chat.llm.provider import CompletionRequest, close_provider, current_provider
from chat.models import Assistant, Continuation, LanguageModel, Run
from chat.runs import finish, handover
from chat.streaming import log as run_log
from chat.streaming.ticker import Ticker, close_ticker, current_ticker
from chat.streaming.writer import RunWriter
from chatproject.lib import aioworker, db, metrics, rows

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

WORKER = f"{socket.gethostname()}:{os.getpid()}"  # how a run's row names the process that has it

# Seconds, while Postgres is away: between two tries, and how long a run that has not begun waits for
# it. A finished reply waits for as long as it takes.
STORE_PAUSE = 1.0
PATIENCE = 60.0

# A provider that ignores the cap must not fill our memory. No cap of today's models reaches this.
REPLY_MAX_CHARACTERS = 1_000_000

SLOW = 0.8  # the part of its time limit above which a run is noted as slow

# How a prompt is cut when the provider counts more tokens than we did: once, twice, then give up.
SHRINKS = (1.0, 0.6, 0.3)


@dataclass(slots=True)
class Reply:
    """What a run has produced so far, and the tokens of its prompt as counted here.

    `prefix` and `prefix_reasoning` are what it goes on from, of an earlier attempt.
    """

    prompt_tokens: int
    prefix: str = ""
    prefix_reasoning: str = ""
    text: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    characters: int = 0
    finish_reason: str = ""
    usage: Usage | None = None
    first_token_at: datetime | None = None

    def outcome(self, status: Run.Status, *, code: str = "", message: str = "") -> finish.Outcome:
        """The run's end as it stands. Usage is counted here when the provider sent none."""
        return finish.Outcome(
            status=status,
            text=self.whole_text(),
            reasoning=self.whole_reasoning(),
            finish_reason=self.finish_reason,
            code=code,
            message=message or (errors.ERRORS[code] if code else ""),
            usage=self._usage(),
            first_token_at=self.first_token_at,
        )

    def whole_text(self) -> str:
        """The reply, with what this attempt began from."""
        return self.prefix + "".join(self.text)

    def whole_reasoning(self) -> str:
        """The same of the reasoning."""
        return self.prefix_reasoning + "".join(self.reasoning)

    def _usage(self) -> protocol.Usage | None:
        if self.usage is not None:
            said = Tokens.reported(
                input=self.usage.prompt_tokens,
                cached=self.usage.cached_tokens,
                output=self.usage.completion_tokens,
                reasoning=self.usage.reasoning_tokens,
            )
            # Some gateways send zeros for what they did not count.
            if said.input and (said.output or self.first_token_at is None):
                return protocol.Usage(
                    prompt_tokens=said.input,
                    completion_tokens=said.output,
                    cached_tokens=said.cached,
                    reasoning_tokens=said.reasoning,
                )
        if self.first_token_at is None:
            return None  # nothing was delivered
        return finish.counted_usage(self.prompt_tokens, "".join(self.text), "".join(self.reasoning))


async def run(run_id: UUID, attempt: int) -> Run | None:
    """Make the reply of a run, if this attempt of it is still to be made.

    Returns the run when this worker has to end before the reply has: then another attempt is to be
    put into the queue.
    """
    taken = await _patiently(take, run_id, attempt)
    if taken is None:
        logger.info("run %s: attempt %d is not to be made", run_id, attempt)
        return None
    work, prompt = taken
    ticker = current_ticker()
    assert work.started_at is not None
    writer = ticker.open(
        run_id,
        attempt,
        age=(timezone.now() - work.started_at).total_seconds(),
        text=work.prefix,
        reasoning=work.prefix_reasoning,
    )
    try:
        return await _make_and_finish(work, prompt, ticker, writer)
    except Exception:
        # Without a lease the sweeper takes the run, with the text that the log holds: all of it.
        await ticker.flush(writer)
        raise
    finally:
        ticker.forget(writer)


async def _patiently(fn: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call what reads or claims, again and again while the database is away, for a while."""
    loop = asyncio.get_running_loop()
    patience = loop.time() + PATIENCE
    while True:
        try:
            return await db.run(fn, *args, **kwargs)
        except db.UNREACHABLE as error:
            if loop.time() > patience:
                raise
            logger.warning("a run waits for the database: %s", error)
            await asyncio.sleep(STORE_PAUSE)


def take(run_id: UUID, attempt: int) -> tuple[Run, prompt_builder.Prompt | None] | None:
    """Claim a run and build its prompt; None if it is not to be made.

    In one call, since each waits for a thread while somebody waits for the reply. Without a prompt
    when building it failed: the run is claimed nevertheless, and `_make`, which has words for every
    fault, tries again.
    """
    work = claim(run_id, attempt)
    if work is None:
        return None
    try:
        return work, prompt_builder.build(work)
    except Exception:
        logger.warning("run %s: its prompt could not be built at once", run_id, exc_info=True)
        return work, None


def claim(run_id: UUID, attempt: int) -> Run | None:
    """Take a queued run for this attempt; None if it is taken, over or stopped.

    One conditional update decides: of any number of jobs for the same attempt one goes on. What the
    run holds is kept for as long as it may take; a run that waited until its hold was gone fails.
    """
    now = timezone.now()
    claimed = rows.first(
        CLAIM, [attempt, now, WORKER, run_id, attempt - 1], Run, Assistant, LanguageModel
    )
    if claimed is None:
        return None
    run: Run
    run, run.assistant, run.model, held_until, run.newest = claimed
    if not run.most or settlement.lasts(held_until, now):
        return run
    if db.money_transaction(settlement.extend, run_id, now):
        return run
    logger.error("run %s lost its hold while it waited", run_id)
    ended = finish.end(
        run_id=run_id,
        attempt=attempt,
        status=Run.Status.RUNNING,
        seq=protocol.first_seq(attempt),
        outcome=finish.failed("unavailable", errors.HOLD_EXPIRED),
    )
    if ended is not None:
        run_log.publish_end(ended)
    return None


# In plain SQL (see lib.rows) and with all that the reply is made from, as somebody waits.
CLAIM = f"""
UPDATE chat_run AS run SET status = 'running', attempt = %s, started_at = %s, worker = %s
FROM chat_assistant AS assistant, chat_languagemodel AS model
WHERE run.id = %s AND run.status = 'queued' AND run.attempt = %s
  AND assistant.id = run.assistant_id AND model.id = run.model_id
RETURNING {rows.columns(Run, "run")}, {rows.columns(Assistant, "assistant")},
  {rows.columns(LanguageModel, "model")}, {settlement.HELD_UNTIL}, {prompt_builder.FIRST_CHUNK}
"""  # noqa: S608 # of names alone


async def _make_and_finish(
    work: Run, prompt: prompt_builder.Prompt | None, ticker: Ticker, writer: RunWriter
) -> Run | None:
    reply = Reply(work.prompt_estimate, work.prefix, work.prefix_reasoning)
    try:
        outcome = await _make(work, prompt, writer, reply)
    except asyncio.CancelledError as cancelled:
        reason = cancelled.args[0] if cancelled.args else ""
        if reason == aioworker.DRAINED and not writer.stop_requested:
            return await _hand_back(ticker, writer, reply)
        await _finish(ticker, writer, _cut_short(reason, reply, work))
        if reason == aioworker.DRAINED:
            return None  # the run has ended: there is nothing to put back into the queue
        raise
    _note_time(work)
    if not writer.lost:
        await _undisturbed(_finish(ticker, writer, outcome))
    return None


async def _make(
    work: Run, prompt: prompt_builder.Prompt | None, writer: RunWriter, reply: Reply
) -> finish.Outcome:
    """Ask the provider and pass on what it says; returns how the run ended."""
    try:
        async with asyncio.timeout(settings.RUN_SECONDS):
            for shrink in SHRINKS:
                if prompt is None or shrink < 1:
                    prompt = await _patiently(prompt_builder.build, work, shrink=shrink)
                reply.prompt_tokens = prompt.tokens
                try:
                    await _consume(work, prompt, writer, reply)
                except (ProviderRefused, ProviderReported) as error:
                    delivered = reply.first_token_at is not None
                    if error.reason != "context" or shrink == SHRINKS[-1] or delivered:
                        raise
                else:
                    break
    except _Interrupted:
        return reply.outcome(Run.Status.STOPPED)
    except _TooLong:
        return reply.outcome(Run.Status.FAILED, code="limit_reached")
    except ProviderError as error:
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


async def _consume(
    work: Run, prompt: prompt_builder.Prompt, writer: RunWriter, reply: Reply
) -> None:
    """Read the provider's stream to its end, in a task that the writer may interrupt."""
    request = _request(work, prompt)
    reading = asyncio.create_task(_read(request, writer, reply), name=f"run {work.id}")
    writer.interrupt = reading.cancel
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


def _request(work: Run, prompt: prompt_builder.Prompt) -> CompletionRequest:
    """What to ask the provider; a reply that has begun in the way that the model goes on from."""
    messages: list[dict[str, Any]] = [*prompt.messages]
    extra: dict[str, Any] = {}
    if work.prefix and work.model.continuation == Continuation.PREFIX:
        messages[-1] = {**messages[-1], "prefix": True}
    elif work.prefix and work.model.continuation == Continuation.VLLM:
        extra = {"continue_final_message": True, "add_generation_prompt": False}
    return CompletionRequest(
        model=work.model.provider_model,
        messages=messages,
        max_tokens=prompt.max_tokens,
        temperature=work.assistant.temperature,
        extra=extra,
    )


def _no_interrupt() -> None:
    return None


async def _read(request: CompletionRequest, writer: RunWriter, reply: Reply) -> None:
    async with aclosing(current_provider().stream(request, writer.pause_reading)) as stream:
        async for batch in stream:
            for event in batch:
                _take(event, writer, reply)


def _take(event: Event, writer: RunWriter, reply: Reply) -> None:
    if isinstance(event, TextDelta):
        text = _storable(event.text, reply)
        reply.text.append(text)
        writer.text(text)
    elif isinstance(event, ReasoningDelta):
        text = _storable(event.text, reply)
        reply.reasoning.append(text)
        writer.reasoning(text)
    elif isinstance(event, Finish):
        reply.finish_reason = event.reason
    elif isinstance(event, Usage):
        reply.usage = event


def _storable(text: str, reply: Reply) -> str:
    if reply.first_token_at is None:
        reply.first_token_at = timezone.now()
    reply.characters += len(text)
    if reply.characters > REPLY_MAX_CHARACTERS:
        raise _TooLong
    # Postgres stores no NUL in text; a small model may well say one.
    return text.replace("\x00", "") if "\x00" in text else text


def _note_time(work: Run) -> None:
    """Say so when a run came near its time limit, before users meet it."""
    taken = (timezone.now() - work.started_at).total_seconds() if work.started_at else 0.0
    if taken > SLOW * settings.RUN_SECONDS:
        metrics.SLOW_RUNS.inc()
        logger.warning("run %s took %.0f of %d s", work.id, taken, settings.RUN_SECONDS)


async def _undisturbed(finishing: Coroutine[Any, Any, None]) -> None:
    """Finish a run although its job is cancelled meanwhile: it is all but over. Once, not twice."""
    task = asyncio.create_task(finishing)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await task


def _cut_short(reason: str, reply: Reply, work: Run) -> finish.Outcome:
    """How a run ends whose job was cancelled."""
    if reason in (aioworker.STOPPED, aioworker.DRAINED):  # drained while somebody stops it
        return reply.outcome(Run.Status.STOPPED)
    logger.warning("run %s was cut short: %s", work.id, reason or "cancelled")
    return reply.outcome(Run.Status.FAILED, code="unavailable", message=errors.INTERRUPTED)


async def _hand_back(ticker: Ticker, writer: RunWriter, reply: Reply) -> Run | None:
    """Let another worker go on with a run, as this one has to end. Its followers hear nothing."""
    writer.seal()
    await ticker.flush(writer)
    try:
        handed_over = await db.run(
            handover.hand_over,
            [
                handover.LostAttempt(
                    run_id=writer.run_id,
                    attempt=writer.attempt,
                    text=reply.whole_text(),
                    reasoning=reply.whole_reasoning(),
                )
            ],
        )
    except db.UNREACHABLE as error:
        # Its lease will run out, and the sweeper does the same with what the log holds.
        logger.warning("run %s could not be handed over: %s", writer.run_id, error)
        return None
    if not handed_over:
        return None  # somebody else was quicker
    logger.info("run %s is handed over after attempt %d", writer.run_id, writer.attempt)
    return handed_over[0]


async def _finish(ticker: Ticker, writer: RunWriter, outcome: finish.Outcome) -> None:
    """Store the end of a run, then tell its followers."""
    writer.seal()
    # Before the row says that the run is over its log holds all of it, for who comes in between.
    await ticker.flush(writer)
    writer.is_ending = True
    event = await _store(writer, outcome)
    if event is None:
        logger.warning("run %s was ended by somebody else", writer.run_id)
        return
    writer.append(event)
    await ticker.close(writer)


async def _store(writer: RunWriter, outcome: finish.Outcome) -> protocol.RunEnd | None:
    """End the run in the database; while that is away, wait for it (the lease is kept meanwhile)."""
    while True:
        try:
            return await db.run(
                finish.end,
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


async def _open() -> None:
    """Make what the runs of this process share: half a second that the first one need not wait."""
    current_provider()
    current_ticker()


async def _close() -> None:
    """Close what the runs of this process shared."""
    await db.tell_news()
    await close_ticker()
    await close_provider()


aioworker.on_start(_open)
aioworker.on_shutdown(_close)
