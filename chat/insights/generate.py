"""One insight: claimed by one worker, asked of the model, validated, repaired once, and stored.

A claim is a compare-and-set on status and attempt, and only its owner stores anything. A worker that dies leaves the row
running, until the clock enqueues it again (chat.insights.recovery).
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from django.conf import settings
from django.db import transaction
from django.db.models import F
from django.utils import timezone

from billing.metering import products
from billing.metering.pricing import Tokens
from billing.models import UsageRecord
from billing.models.usage import Purpose
from chat.insights import answers, context, finish
from chat.insights.models import Insight, InsightJob
from chat.llm.connections import opened
from chat.llm.decoder import TextDelta, Usage
from chat.llm.errors import ProviderError, ProviderTimeout
from chat.llm.quirks import Quirks
from chat.llm.request import CompletionRequest
from chat.llm.tokens import TEMPLATE_TOKENS, count_tokens, typical_tokens
from chat.models import LanguageModel, Provider
from chatproject.lib import db

logger = logging.getLogger(__name__)

MOST_ANSWER_TOKENS = 4_000  # some models think first
MOST_ANSWER_CHARACTERS = 60_000
OVERHEAD_TOKENS = 1_500  # instructions, names and marks
LEAST_TOKENS = 200  # of the document, in the smallest window


@dataclass(slots=True)
class Call:
    """A request to the provider, its answer and what it used."""

    messages: list[dict[str, Any]]
    text: str = ""
    usage: Usage | None = None
    finish: UsageRecord.Finish = UsageRecord.Finish.FAILED
    has_answer: bool = False

    @property
    def asked_tokens(self) -> int:
        return sum(typical_tokens(one["content"]) for one in self.messages)


@dataclass(slots=True)
class Task:
    """A claimed insight, and what its model is asked."""

    insight: Insight
    job: InsightJob
    model: LanguageModel
    provider: Provider
    messages: list[dict[str, Any]]
    most_tokens: int
    calls: list[Call] = field(default_factory=list)


async def run(insight_id: UUID, attempt: int) -> None:
    """Make an insight, unless another job has claimed this attempt; then end the job if it was the last."""
    task = await db.run(_claim, insight_id, attempt)
    if task is None:
        return
    try:
        async with asyncio.timeout(settings.INSIGHT_SECONDS):
            data, error = await _make(task)
    except (ProviderTimeout, TimeoutError):
        data, error = None, "provider_timeout"
    except ProviderError as refusal:
        logger.info("insight %s failed: %r", insight_id, refusal)
        data, error = None, "provider_error"
    except asyncio.CancelledError:
        # The worker ends: the next one begins anew at once, and what was asked is recorded now.
        await asyncio.shield(db.run(_hand_back, task))
        raise
    try:
        if await db.run(_store, task, data, error):
            await db.run(finish.end_if_over, task.job.pk)
    except db.MoneyBusy:
        logger.warning("the end of %s is left to the clock", task.job)


# --- The claim --------------------------------------------------------------------------------


def _claim(insight_id: UUID, attempt: int) -> Task | None:
    """Claim an attempt and prepare its request; None if there is nothing to do, or no way to do it."""
    queued = Insight.objects.filter(pk=insight_id, status=Insight.Status.QUEUED, attempt=attempt)
    if not queued.update(
        status=Insight.Status.RUNNING, attempt=F("attempt") + 1, beat_at=timezone.now()
    ):
        return None
    insight = Insight.objects.select_related(
        "job__document", "job__category", "job__model__provider", "job__owner"
    ).get(pk=insight_id)
    job = insight.job
    if job.document.deleted_at is not None or not job.owner.is_active:
        finish.stop(job.pk)
        _fail(insight, "stopped")  # of a retry, whose job had ended
        return None
    model = job.model
    if model is None or not model.enabled:
        _end_failed(insight, "model_unavailable")
        return None
    provider = model.provider or Provider.objects.filter(base_url="").first() or Provider()
    quirks = Quirks.of(model.quirks)
    most_tokens = quirks.lower(
        min(MOST_ANSWER_TOKENS, model.max_output_tokens, model.context_tokens // 4)
    )
    found = context.of_job(job, _room(job, model, most_tokens))
    messages = answers.request_messages(insight, found, job.language)
    size = sum(typical_tokens(one["content"]) for one in messages)
    Insight.objects.filter(pk=insight.pk).update(asked_tokens=size)
    finish.announce(job.pk)
    return Task(insight, job, model, provider, messages, most_tokens)


def _room(job: InsightJob, model: LanguageModel, most_tokens: int) -> int:
    """Return the tokens of the document that fit beside any question of the job: all of them share one context."""
    questions = job.insights.values_list("prompt", "schema")
    asked = max(count_tokens(prompt) + count_tokens(str(schema)) for prompt, schema in questions)
    # The repair repeats the answer; a part of the window is for the question itself.
    room = model.context_tokens - 2 * most_tokens - asked - OVERHEAD_TOKENS - TEMPLATE_TOKENS
    return max(LEAST_TOKENS, min(context.MOST_TOKENS, room // 500 * 500))


def _fail(insight: Insight, error: str) -> bool:
    mine = Insight.objects.filter(
        pk=insight.pk, status=Insight.Status.RUNNING, attempt=insight.attempt
    )
    changed = mine.update(status=Insight.Status.FAILED, error=error, ended_at=timezone.now())
    return bool(changed)


def _end_failed(insight: Insight, error: str) -> None:
    if _fail(insight, error):
        try:
            finish.end_if_over(insight.job_id)
        except db.MoneyBusy:
            logger.warning("the end of job %s is left to the clock", insight.job_id)


# --- The requests -----------------------------------------------------------------------------


async def _make(task: Task) -> tuple[dict[str, Any] | None, str]:
    """Return the data of the insight, or a code of what went wrong. Raises ProviderError."""
    provider = opened(task.provider, max_retries=1, wait_limit=settings.INSIGHT_SECONDS)
    try:
        answer = await _ask(task, provider, task.messages)
        data, problems = await asyncio.to_thread(answers.read, task.insight.schema, answer)
        if data is None and answer.strip():
            messages = answers.repair_messages(task.messages, answer, problems)
            answer = await _ask(task, provider, messages)
            data, problems = await asyncio.to_thread(answers.read, task.insight.schema, answer)
    finally:
        await provider.close()
    if data is None:
        logger.info("insight %s has no valid answer: %d problems", task.insight.pk, len(problems))
        return None, "bad_answer" if answer.strip() else "empty_reply"
    return await db.run(answers.check_quotes, task.job.document_id, data), ""


async def _ask(task: Task, provider: Any, messages: list[dict[str, Any]]) -> str:
    call = Call(messages)
    task.calls.append(call)

    def note_accepted(is_accepted: bool) -> None:
        call.has_answer = is_accepted

    request = CompletionRequest(
        task.model.provider_model,
        messages,
        max_tokens=task.most_tokens,
        extra={"response_format": answers.response_format(task.insight)},
        quirks=Quirks.of(task.model.quirks),
    )
    async with aclosing(provider.stream(request, note_accepted=note_accepted)) as batches:
        async for events in batches:
            for event in events:
                if isinstance(event, TextDelta):
                    call.text += event.text
                elif isinstance(event, Usage):
                    call.usage = event
            if len(call.text) > MOST_ANSWER_CHARACTERS:
                break
    call.finish = UsageRecord.Finish.COMPLETE if call.text.strip() else UsageRecord.Finish.EMPTY
    return call.text


# --- The end ----------------------------------------------------------------------------------


def _store(task: Task, data: dict[str, Any] | None, error: str) -> bool:
    """Store the end of the attempt with the usage of its calls; False if another one has begun meanwhile."""
    insight = task.insight
    with transaction.atomic():
        mine = Insight.objects.filter(
            pk=insight.pk, status=Insight.Status.RUNNING, attempt=insight.attempt
        )
        changed = mine.update(
            status=Insight.Status.FAILED if data is None else Insight.Status.DONE,
            data=data,
            error=error,
            asked_tokens=0,
            ended_at=timezone.now(),
        )
        if changed:
            _record(task)
        return bool(changed)


def _hand_back(task: Task) -> None:
    """Let another worker take the attempt's place, and record what it asked for."""
    insight = task.insight
    with transaction.atomic():
        mine = Insight.objects.filter(
            pk=insight.pk, status=Insight.Status.RUNNING, attempt=insight.attempt
        )
        if mine.update(
            status=Insight.Status.QUEUED, asked_tokens=0, beat_at=insight.job.created_at
        ):
            _record(task)


def _record(task: Task) -> None:
    insight = task.insight
    spent = [record(insight, number, call, task) for number, call in enumerate(task.calls)]
    tokens = [one for one, _cost in spent]
    Insight.objects.filter(pk=insight.pk).update(
        input_tokens=F("input_tokens") + sum(one.input for one in tokens),
        output_tokens=F("output_tokens") + sum(one.output for one in tokens),
        cost=F("cost") + sum(cost for _tokens, cost in spent),
    )


def record(insight: Insight, number: int, call: Call, task: Task) -> tuple[Tokens, int]:
    """Record a request at our expense; return its tokens and cost. One that was never accepted cost nothing."""
    if not call.has_answer and call.usage is None:
        return Tokens(input=0), 0
    if call.usage is None:
        tokens = Tokens(input=call.asked_tokens, output=typical_tokens(call.text))
        source = UsageRecord.Source.COUNTED
    else:
        source = UsageRecord.Source.PROVIDER
        tokens = Tokens.reported(
            input=call.usage.prompt_tokens,
            cached=call.usage.cached_tokens,
            output=call.usage.completion_tokens,
            reasoning=call.usage.reasoning_tokens,
        )
    if not settings.BILLING:
        return tokens, 0
    cost = products.absorb(
        user_id=task.job.owner_id,
        id=task.job.pk,
        attempt=insight.attempt,
        step=step_of(insight, number),
        model=task.model.provider_model,
        name=task.job.category.name,
        tokens=tokens,
        source=source,
        finish=call.finish,
        purpose=Purpose.INSIGHT,
    )
    return tokens, cost


def step_of(insight: Insight, number: int) -> int:
    """Return the step of a usage record: 0 is the charge of the job."""
    return 1 + 2 * insight.position + number
