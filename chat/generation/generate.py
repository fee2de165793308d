"""Generates a reply in a worker: claim, prompt, provider, events, end.

`run` is the coroutine behind each job of the queue; hundreds of them share one event loop. The
model's output goes into the run's writer (streaming/writer.py) and into a `Reply` in memory; it is
stored in the database once, at the end (runs/finish.py).
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
from collections.abc import Coroutine, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import Any
from uuid import UUID

import redis
from django.conf import settings
from django.db import connection
from django.utils import timezone

from billing.metering import settlement
from chat import errors, protocol
from chat.conversations import api_prompt, prompt_builder
from chat.conversations.prompt_builder import Prompt
from chat.generation import agent as agents
from chat.generation.agent import Agent
from chat.generation.patience import RETRY_PAUSE, with_patience
from chat.generation.reply import Reply, ReplyTooLong
from chat.llm import quirks
from chat.llm.connections import close_connections, current_connections
from chat.llm.errors import (
    MessageTooLong,
    ProviderError,
    ProviderRefused,
    ProviderReported,
    ProviderTimeout,
)
from chat.llm.provider import NoteAccepted, NoteLearned
from chat.llm.quirks import CONTINUATION, LEFT_OUT, OF_THE_SERVER, Quirks
from chat.llm.request import CompletionRequest, refuses_continuation
from chat.models import Assistant, Continuation, LanguageModel, Provider, Run
from chat.runs import fallback, finish, handover, next_message, queue, steps
from chat.streaming import log as run_log
from chat.streaming.ticker import Ticker, close_ticker, current_ticker
from chat.streaming.writer import RunWriter, no_interrupt
from chatproject.lib import db, log_context, metrics, rq_asyncio
from chatproject.lib.db import prepared
from chatproject.lib.log_events import log_event

logger = logging.getLogger(__name__)

WORKER = f"{socket.gethostname()}:{os.getpid()}"  # name of this process in a run's row

SLOW = 0.8  # the part of its time limit above which a run is counted as slow

PLACE_PAUSE = 0.5  # seconds between two tries to take a place for a fallback

# The size of a prompt as a part of the one before, which the provider refused as too long.
SHRINKS = (0.6, 0.5)

# Fields of a request of the API without which another answer than the requested one would come.
REQUIRED = frozenset(("tools", "tool_choice", "response_format", "stop"))


async def run(run_id: UUID, attempt: int) -> Run | None:
    """Generate the reply of a run, unless this attempt is already claimed or no longer wanted.

    Returns the run if this worker has to end before the reply does: the caller then enqueues the
    next attempt.
    """
    log_context.bind(run_id=str(run_id))
    claimed = await with_patience(claim_with_prompt, run_id, attempt)
    if claimed is None:
        logger.info("run %s: attempt %d is not claimed", run_id, attempt)
        return None
    work, prompt = claimed
    log_context.bind(user_id=work.user_id)
    # One line at its end is enough by default; it has this one's time.
    log_event("run_started", level=logging.DEBUG, run_id=run_id, attempt=attempt, worker=WORKER)
    ticker = current_ticker()
    assert work.started_at is not None
    writer = ticker.open(
        run_id,
        attempt,
        age=(timezone.now() - work.started_at).total_seconds(),
        text=work.prefix or work.finished_text,
        reasoning=work.prefix_reasoning or work.finished_reasoning,
        renders=work.api is None,
        has_steps=work.steps > 0,
    )
    writer.place = work.place
    handed_over: Run | None = None
    try:
        handed_over = await _generate_and_finish(work, prompt, ticker, writer)
        return handed_over
    except Exception:
        # Without a lease the sweeper recovers the run, with the text of the log: all of it.
        await ticker.flush(writer)
        raise
    finally:
        ticker.forget(writer)
        if handed_over is None:  # else its next attempt keeps the place
            await _free_place(writer)


def claim_with_prompt(run_id: UUID, attempt: int) -> tuple[Run, Prompt | None] | None:
    """Claim a run and build its prompt; None if it cannot be claimed.

    One call, since each waits for a thread while the user waits for the reply. A prompt that could
    not be built is None: the run is claimed nevertheless, and `_generate`, which reports every
    fault to the user, tries again.
    """
    work = claim(run_id, attempt)
    if work is None:
        return None
    try:
        return work, api_prompt.prompt_of(work, with_files=True)
    except Exception:
        logger.warning("run %s: its prompt could not be built at once", run_id, exc_info=True)
        return work, None


def claim(run_id: UUID, attempt: int) -> Run | None:
    """Claim a queued run for this attempt; None if it is claimed already, ended or stopped.

    One conditional update decides (compare-and-set): of any number of jobs for an attempt one goes
    on. At a provider with a concurrency limit the run takes a place first, or stays queued until it gets
    one. A hold that would not outlive the run is extended before the claim, so that a locked account
    (db.MoneyBusy, raised) uses up no attempt; a run whose hold expired in the queue fails.
    """
    place: Provider | None = None
    while True:
        now = timezone.now()
        covered = settlement.covered_until(now)
        values = [attempt, now, WORKER, run_id, attempt - 1, covered, place is not None]
        claimed = prepared.first(CLAIM, values, Run, Assistant, LanguageModel, Provider)
        if claimed is not None:
            run: Run
            run, run.assistant, run.model, run.provider, run.newest, read = claimed
            *texts, noted, run.has_documents = read
            run.instructions = prompt_builder.with_notes(texts, noted, run.model)
            run.place = place.pk if place else None
            if run.steps:
                run.finished_text, run.finished_reasoning = run.prefix, run.prefix_reasoning
                run.prefix = run.prefix_reasoning = ""
            elif run.prefix and not run.continued and not Quirks.of(run.model.quirks).continues:
                drop_prefix(run)
            return run
        found = Run.objects.filter(
            pk=run_id, status=Run.Status.QUEUED, attempt=attempt - 1, waits_until=None
        )
        queued = found.select_related("model__provider", "answered_by__provider").first()
        if queued is None:
            if place is not None:
                queue.serve_waiting(place.pk, place.concurrency, ended=run_id)
            return None
        if place is None and (place := _limited_provider(queued)) is not None:
            try:
                if queue.take_place(queued, place):
                    continue
            except redis.RedisError as error:
                logger.warning("run %s begins without a place: %s", run_id, error)
                continue
            logger.info("run %s waits for provider %s", run_id, place)
            return None
        if not db.money_transaction(settlement.extend, run_id, now):
            break
    logger.error("run %s lost its hold in the queue", run_id)
    ended = finish.end(
        run_id=run_id,
        attempt=attempt - 1,
        status=Run.Status.QUEUED,
        seq=protocol.first_seq(attempt),
        outcome=finish.failed("unavailable", errors.HOLD_EXPIRED),
    )
    if ended is not None:
        run_log.publish_end(ended)
    return None


def drop_prefix(run: Run) -> None:
    """Let a running run begin anew: its model does not continue the text of the attempt before."""
    run.prefix = run.prefix_reasoning = ""
    Run.objects.filter(pk=run.pk, attempt=run.attempt, status=Run.Status.RUNNING).update(
        prefix="", prefix_reasoning=""
    )


def _limited_provider(run: Run) -> Provider | None:
    """Return the provider that a queued run will be requested from, if it has a concurrency limit."""
    model = (run.answered_by if run.prefix else None) or run.model
    provider = model.provider or Provider.objects.filter(base_url="").first()
    return provider if provider is not None and provider.concurrency is not None else None


# Plain SQL (see lib.db.prepared): one query for all that the reply is generated from, as a user waits.
# A partial text is continued by the model that wrote it; otherwise the run's own model is asked again.
CLAIM = f"""
UPDATE chat_run AS run SET status = 'running', attempt = %s, started_at = %s, worker = %s,
  provider_id = provider.id,
  answered_by_id = CASE WHEN run.prefix <> '' THEN run.answered_by_id END,
  model_snapshot = CASE WHEN run.prefix <> '' OR run.answered_by_id IS NULL THEN run.model_snapshot
    ELSE run.model_snapshot - '{fallback.SNAPSHOT}' END
FROM chat_assistant AS assistant, chat_languagemodel AS model
  LEFT JOIN chat_provider AS provider ON provider.id = {Provider.OF_MODEL}
WHERE run.id = %s AND run.status = 'queued' AND run.attempt = %s AND run.waits_until IS NULL
  AND {settlement.COVERED}
  AND assistant.id = run.assistant_id
  AND model.id = COALESCE(CASE WHEN run.prefix <> '' THEN run.answered_by_id END, run.model_id)
  AND (provider.concurrency IS NULL OR %s)
RETURNING {prepared.columns(Run, "run")}, {prepared.columns(Assistant, "assistant")},
  {prepared.columns(LanguageModel, "model")}, {prepared.columns(Provider, "provider")},
  {prompt_builder.FIRST_CHUNK}, {prompt_builder.INSTRUCTIONS}
"""  # noqa: S608 # of names alone


async def _generate_and_finish(
    work: Run, prompt: Prompt | None, ticker: Ticker, writer: RunWriter
) -> Run | None:
    reply = Reply(
        work.prompt_estimate,
        work.prefix or work.finished_text,
        work.prefix_reasoning or work.finished_reasoning,
        work.continued or len(work.finished_text),
        is_of_api=work.api is not None,
    )
    try:
        outcome = await _generate(work, prompt, writer, reply)
    except asyncio.CancelledError as cancelled:
        reason = cancelled.args[0] if cancelled.args else ""
        if reason == rq_asyncio.DRAINED and not writer.stop_requested:
            return await _hand_back(work, ticker, writer, reply)
        if reason in (rq_asyncio.STOPPED, rq_asyncio.DRAINED):  # drained after a user's stop
            outcome = reply.outcome(Run.Status.STOPPED)
            outcome.is_users_stop = writer.stop_requested
        else:
            logger.warning("run %s was cut short: %s", work.id, reason or "cancelled")
            outcome = reply.outcome(
                Run.Status.FAILED, code="unavailable", message=errors.INTERRUPTED
            )
        await _finish(ticker, writer, outcome)
        if reason == rq_asyncio.DRAINED:
            return None  # the run has ended: there is nothing to requeue
        raise
    taken = (timezone.now() - work.started_at).total_seconds() if work.started_at else 0.0
    if taken > SLOW * settings.RUN_SECONDS:  # logged before users reach the limit
        metrics.SLOW_RUNS.inc()
        logger.warning("run %s took %.0f of %d s", work.id, taken, settings.RUN_SECONDS)
    if outcome is None:  # it waits for its user
        logger.info("run %s waits for its user's answer", work.id)
        return None
    if not writer.lost:
        finishing = asyncio.create_task(_finish(ticker, writer, outcome))
        try:
            await asyncio.shield(finishing)
        except asyncio.CancelledError:
            await finishing  # the run has all but ended: its end must be stored, and only once
    if outcome.has_next:
        try:
            await db.run(next_message.proceed, work.conversation_id)
        except db.UNREACHABLE as error:
            logger.warning("run %s: the next message is left to the clock: %s", work.id, error)
    is_first = outcome.status == Run.Status.DONE and prompt is not None and prompt.is_single
    if settings.TITLE_MODEL and is_first and work.api is None:
        try:
            await db.run(queue.enqueue_title, work.id)
        except redis.RedisError as error:
            logger.warning("the chat of run %s keeps its first title: %s", work.id, error)
    if reply.learned and reply.first_token_at is not None:
        try:
            await db.run(remember, of_the_server(reply.learned) if work.api else reply.learned)
        except db.UNREACHABLE as error:
            # The next reply meets the same refusal, and stores it then.
            logger.warning("run %s: quirks are not stored: %s", work.id, error)
    return None


def of_the_server(learned: Mapping[int, Mapping[str, str]]) -> dict[int, dict[str, str]]:
    """Return the quirks that a call of the API may teach: those that its caller cannot bring about.

    The caller has chosen roles and fields. A refusal of those must not change the requests of other users.
    """
    kept = {
        model_id: {subject: found[subject] for subject in OF_THE_SERVER & found.keys()}
        for model_id, found in learned.items()
    }
    return {model_id: found for model_id, found in kept.items() if found}


REMEMBER = "UPDATE chat_languagemodel SET quirks = quirks || %s::jsonb WHERE id = %s"


def remember(learned: Mapping[int, Mapping[str, str]]) -> None:
    """Add to the quirks of models, by their ids; entries of other workers and of staff stay."""
    now = timezone.now().isoformat(timespec="seconds")
    for model_id, found in learned.items():
        entries = {subject: quirks.entry(value, now) for subject, value in found.items()}
        with connection.cursor() as cursor:
            cursor.execute(REMEMBER, [json.dumps(entries), model_id])
        logger.warning("model %s: its server refuses a part of requests: %s", model_id, found)


async def _generate(
    work: Run, prompt: Prompt | None, writer: RunWriter, reply: Reply
) -> finish.Outcome | None:
    """Request the reply from the provider and pass its events on; returns how the run ended.

    None: it has not, but waits for its user's answer.
    """
    agent: Agent | None = None
    try:
        async with asyncio.timeout(settings.RUN_SECONDS):
            if agents.may_use_tools(work):
                agent = await with_patience(agents.prepare, work)
            try:
                await _answer(work, prompt, writer, reply, agent)
            except ProviderError as error:
                delivered = reply.first_token_at is not None
                if delivered or not fallback.has_fallback(work) or not fallback.is_for(work, error):
                    raise
                asked = await with_patience(fallback.begin, work)
                if asked is None:
                    raise
                await _change_place(asked, writer)
                logger.warning(
                    "run %s: %s: %s; %s is asked instead",
                    work.id,
                    type(error).__name__,
                    error.detail,
                    asked.model,
                )
                reply.begin_again()
                reply.learned.clear()  # by requests that have failed
                if agent is not None:
                    agent.change_model(asked)
                await _answer(asked, None, writer, reply, agent)
    except _Interrupted:
        return reply.outcome(Run.Status.STOPPED)
    except agents.Parked:
        return None
    except steps.LostRun:
        writer.mark_lost()
        return reply.outcome(Run.Status.FAILED, code="unavailable", message=errors.INTERRUPTED)
    except agents.LimitReached as error:
        return reply.outcome(Run.Status.FAILED, code=error.code, message=error.message)
    except (ReplyTooLong, TimeoutError):
        if reply.first_token_at is not None:
            return reply.outcome(Run.Status.FAILED, code="limit_reached")
        silent = ProviderTimeout(f"nothing arrived within {settings.RUN_SECONDS} s")
        logger.warning("run %s: %s", work.id, silent.detail)
        return reply.outcome(
            Run.Status.FAILED, code=silent.code, message=silent.message, cause=silent.cause
        )
    except ProviderError as error:
        logger.warning("run %s: %s: %s", work.id, type(error).__name__, error.detail)
        return reply.outcome(
            Run.Status.FAILED, code=error.code, message=error.message, cause=error.cause
        )
    except Exception:
        # In any case the user must not wait for a reply that no worker generates.
        logger.exception("run %s failed", work.id)
        return reply.outcome(Run.Status.FAILED, code="internal")
    return reply.finished()


async def _answer(
    work: Run, prompt: Prompt | None, writer: RunWriter, reply: Reply, agent: Agent | None
) -> None:
    if agent is None:
        await _ask(work, prompt, writer, reply)
        return
    reply.collects_calls = agent.asks
    await agents.answer(agent, prompt, writer, reply, ask=_ask, interruptibly=_interruptibly)


async def _change_place(asked: Run, writer: RunWriter) -> None:
    """Free the run's place, and take one at the provider of its fallback as soon as one is free."""
    await _free_place(writer)
    provider = asked.provider
    if provider is None or provider.concurrency is None:
        return
    while not writer.stop_requested and not writer.lost:
        try:
            if await db.run(queue.take_place, asked, provider, waits=False):
                writer.place = provider.pk
                return
        except redis.RedisError as error:
            logger.warning("run %s begins without a place: %s", asked.id, error)
            return
        await asyncio.sleep(PLACE_PAUSE)


async def _free_place(writer: RunWriter) -> None:
    """Free the place that a run has at its provider, if any; a failure is left to the place's lease."""
    provider_id, writer.place = writer.place, None
    if provider_id is None:
        return
    try:
        await db.run(_serve_next, provider_id, writer.run_id)
    except (redis.RedisError, *db.UNREACHABLE) as error:
        logger.warning("run %s: its place is not freed yet: %s", writer.run_id, error)


def _serve_next(provider_id: int, ended: UUID) -> None:
    provider = Provider.objects.only("concurrency").filter(pk=provider_id).first()
    queue.serve_waiting(provider_id, provider.concurrency if provider else None, ended=ended)


async def _ask(
    work: Run,
    prompt: Prompt | None,
    writer: RunWriter,
    reply: Reply,
    agent: Agent | None = None,
) -> None:
    """Request the reply from the model of the run, with a shorter prompt if that is too long.

    The `agent` of a run with tools adds them, and the steps so far, to each prompt.
    """

    def note_accepted(is_accepted: bool) -> None:
        reply.is_accepted = is_accepted
        reply.is_between_steps = reply.is_between_steps and not is_accepted
        writer.mark_accepted(is_accepted)

    def note_learned(learned: dict[str, str]) -> None:
        if learned:
            reply.learned.setdefault(work.model.pk, {}).update(learned)

    shrinks = iter(SHRINKS)
    while True:
        if prompt is None:
            prompt = await with_patience(api_prompt.prompt_of, work, with_files=True)
        sent = prompt
        if agent is not None:
            sent = await with_patience(agent.covered, prompt)
        reply.prompt_tokens = sent.tokens
        note_accepted(False)
        request = completion_request(work, sent, reply.learned.get(work.model.pk))
        if agent is not None:
            request = replace(request, extra={**request.extra, **agent.fields()})
        try:
            await _consume(work, request, writer, reply, note_accepted, note_learned)
            return
        except (ProviderRefused, ProviderReported) as error:
            if reply.first_token_at is not None:
                raise
            if work.prefix and prompt_builder.continues(work) and refuses_continuation(error):
                note_learned(error.learned | {CONTINUATION: LEFT_OUT})
                if work.continued:  # then it is asked to
                    now = timezone.now().isoformat(timespec="seconds")
                    work.model.quirks |= {CONTINUATION: quirks.entry(LEFT_OUT, now)}
                else:
                    await with_patience(drop_prefix, work)
                    reply.drop_prefix(writer)
                prompt = None
                continue
            shrink = next(shrinks, None)
            if error.reason not in {"context", "too_large"} or shrink is None:
                raise
            note_learned(error.learned)
            prompt = await _shortened(work, prompt, shrink, error)


async def _shortened(
    work: Run, prompt: Prompt, shrink: float, error: ProviderRefused | ProviderReported
) -> Prompt:
    """Return a shorter prompt than the refused one. Raises MessageTooLong if there is none."""
    refusal = error.refusal
    assert refusal is not None
    if not prompt.is_single:
        within = int(prompt.size * shrink)
        if refusal.window:
            within = min(within, max(refusal.window // 2, refusal.window - prompt.max_tokens))
        return await with_patience(api_prompt.prompt_of, work, within=within, with_files=True)
    room = refusal.allowed or 0
    if not 0 < room < prompt.max_tokens:
        raise MessageTooLong(error.detail, refusal) from None
    return replace(prompt, max_tokens=room)  # a shorter reply is better than none


class _Interrupted(Exception):
    """The writer interrupted the run."""


async def _consume(
    work: Run,
    request: CompletionRequest,
    writer: RunWriter,
    reply: Reply,
    note_accepted: NoteAccepted,
    note_learned: NoteLearned,
) -> None:
    """Read the provider's stream to its end, in a task that the writer can interrupt."""

    async def read() -> None:
        with current_connections().use(work.provider or Provider()) as provider:
            batches = provider.stream(request, writer.pause_reading, note_accepted, note_learned)
            try:
                async with aclosing(batches) as stream:
                    async for batch in stream:
                        for event in batch:
                            reply.add(event, writer)
            finally:
                reply.release(writer)

    await _interruptibly(writer, read(), f"run {work.id}")


async def _interruptibly(writer: RunWriter, work: Coroutine[Any, Any, object], name: str) -> None:
    """Await work in a task that the writer can interrupt. Raises _Interrupted."""
    working = asyncio.create_task(work, name=name)
    writer.interrupt = working.cancel
    if writer.stop_requested or writer.lost:
        working.cancel()
    try:
        await working
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise  # the job itself is cancelled, not only the reading
        raise _Interrupted from None
    finally:
        writer.interrupt = no_interrupt


def completion_request(
    run: Run, prompt: Prompt, learned: Mapping[str, str] | None = None
) -> CompletionRequest:
    """Return the request for a reply; a prefix is marked in the format that the model continues.

    `learned` are quirks of the model that are not stored yet.
    """
    messages: list[dict[str, Any]] = [*prompt.messages]
    extra: dict[str, Any] = {}
    is_continued = run.prefix and prompt_builder.continues(run)
    if is_continued and run.model.continuation == Continuation.PREFIX:
        messages[-1] = {**messages[-1], "prefix": True}
    elif is_continued and run.model.continuation == Continuation.VLLM:
        extra = {"continue_final_message": True, "add_generation_prompt": False}
    if prompt.fields is not None:
        return CompletionRequest(
            model=run.model.provider_model,
            messages=messages,
            max_tokens=prompt.max_tokens,
            temperature=prompt.temperature,
            extra={**prompt.fields, **extra},
            has_fallback=fallback.has_fallback(run),
            quirks=Quirks.of(run.model.quirks, learned),
            required=REQUIRED & prompt.fields.keys(),
        )
    effort = run.model_snapshot.get("effort")
    if effort in run.model.offered_efforts:  # a fallback may have others
        extra["reasoning_effort"] = effort
    return CompletionRequest(
        model=run.model.provider_model,
        messages=messages,
        max_tokens=prompt.max_tokens,
        temperature=run.model_snapshot.get("temperature", run.assistant.temperature),
        extra=extra,
        has_fallback=fallback.has_fallback(run),
        quirks=Quirks.of(run.model.quirks, learned),
    )


async def _hand_back(work: Run, ticker: Ticker, writer: RunWriter, reply: Reply) -> Run | None:
    """Requeue the run of a worker that has to end. Nothing is published to its followers.

    A run whose client could not follow another attempt fails instead.
    """
    writer.seal()
    await ticker.flush(writer)
    text, tools = reply.whole_text(), reply.written_tool_calls()
    if not handover.can_begin_again(work, text, tools):
        outcome = reply.outcome(Run.Status.FAILED, code="unavailable", message=errors.INTERRUPTED)
        await _finish(ticker, writer, outcome)
        return None
    lost = handover.LostAttempt(
        run_id=writer.run_id,
        attempt=writer.attempt,
        text=text,
        reasoning=reply.whole_reasoning(),
        tools=tools,
        usage=reply.present_usage(),
    )
    try:
        handed_over = await db.run(handover.hand_over, [lost])
    except db.UNREACHABLE as error:
        # Its lease will expire, and the sweeper then does the same with the text of the log.
        logger.warning("run %s could not be handed over: %s", writer.run_id, error)
        return None
    if not handed_over:
        return None  # another process was faster
    metrics.ATTEMPTS_HANDED_OVER.inc()
    logger.info("run %s is handed over after attempt %d", writer.run_id, writer.attempt)
    return handed_over[0]


async def _finish(ticker: Ticker, writer: RunWriter, outcome: finish.Outcome) -> None:
    """Store the end of a run, then publish it to the followers.

    Retries for as long as Postgres is unreachable; the ticker keeps the lease meanwhile.
    """
    writer.seal()
    if outcome.text:
        outcome.html = await writer.rendering.finish(outcome.text)
    # The log must be complete before the row has the end, for followers that arrive in between.
    await ticker.flush(writer)
    writer.is_ending = True
    is_repeated = False
    while True:
        try:
            event = await db.run(
                finish.end,
                run_id=writer.run_id,
                attempt=writer.attempt,
                status=Run.Status.RUNNING,
                seq=writer.next_seq,
                outcome=outcome,
            )
            break
        except db.UNREACHABLE as error:
            if writer.lost:
                raise
            logger.warning("run %s waits for the database: %s", writer.run_id, error)
            is_repeated = True
            await asyncio.sleep(RETRY_PAUSE)
    if event is None and is_repeated:
        # The end may have been stored although the answer to the COMMIT was lost.
        stored = await with_patience(finish.read, writer.run_id)
        if stored is not None and (stored.attempt, stored.seq) == (writer.attempt, writer.next_seq):
            event = stored
    if event is None:
        logger.warning("run %s was ended by another process", writer.run_id)
        return
    writer.append(event)
    await ticker.close(writer)


async def open_shared() -> None:
    """Open the environment's provider and the ticker: saves the first run half a second."""
    try:
        current_connections().open(Provider(name="OPENAI_BASE_URL"))
    except ProviderRefused as error:  # other providers may be usable
        logger.error("%s", error.detail)
    current_ticker()


async def close_shared() -> None:
    """Close the ticker and the providers of this process, after its last announcements."""
    await db.run_deferred()
    await close_ticker()
    await close_connections()


rq_asyncio.on_start(open_shared)
rq_asyncio.on_shutdown(close_shared)
