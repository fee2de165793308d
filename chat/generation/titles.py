"""Automatic titles: after its first reply a conversation is named by a small model, TITLE_MODEL.

The first line of the first message remains the title until then, and after any failure. The operator
pays: the cost is recorded as absorbed. A title that a person has given stays.
"""

from __future__ import annotations

import asyncio
import logging
import re
from contextlib import aclosing
from dataclasses import dataclass
from uuid import UUID

from django.conf import settings
from django.db import transaction

from billing.metering import pricing, usage
from billing.metering.pricing import Tokens
from billing.models import UsageRecord
from billing.models.usage import Purpose
from chat.conversations import lifecycle
from chat.llm.connections import opened
from chat.llm.decoder import TextDelta, Usage
from chat.llm.errors import ProviderError
from chat.llm.quirks import Quirks
from chat.llm.request import CompletionRequest
from chat.llm.thoughts import split_thoughts
from chat.llm.tokens import typical_tokens
from chat.models import Conversation, LanguageModel, Message, Provider, Run
from chat.models.catalogue import ModelKind
from chat.streaming.user_channel import announce_conversation
from chatproject.lib import db

logger = logging.getLogger(__name__)

SECONDS = 30.0  # for the whole answer
MAX_TOKENS = 200  # some models think first
QUESTION_CHARACTERS, ANSWER_CHARACTERS = 2_000, 1_000  # of the messages that the model reads
STEP = 1  # of the run's attempt; its reply is step 0

INSTRUCTION = (
    "Name the conversation below in two to six words, in the language of the user."
    " Answer with the name alone, without quotation marks."
)
DECORATION = re.compile(r"^[\s#*_\"'“”„«»`]+|[\s*_\"'“”„«»`.。]+$")


@dataclass(frozen=True, slots=True)
class Task:
    """A run whose conversation is to be named, and the model that is asked."""

    run: Run
    model: LanguageModel
    provider: Provider
    text: str


async def make_title(run_id: UUID) -> None:
    """Name the conversation of a run that has ended; after a failure its title stays."""
    task = await db.run(_read, run_id)
    if task is None:
        return
    answer, spent = "", None
    try:
        async with asyncio.timeout(SECONDS):
            answer, spent = await _ask(task)
    except (ProviderError, TimeoutError) as error:
        logger.info("the chat of run %s keeps its first title: %r", run_id, error)
        return
    await db.run(_store, task, clean(answer), spent)


def _read(run_id: UUID) -> Task | None:
    run = (
        Run.objects.select_related("conversation", "message__parent")
        .filter(pk=run_id, status=Run.Status.DONE, conversation__titled_by="")
        .filter(conversation__deleted_at=None, conversation__temporary=False)
        .filter(message__parent__role=Message.Role.USER)
        .first()
    )
    model = (
        LanguageModel.objects.select_related("provider")
        .filter(provider_model=settings.TITLE_MODEL, enabled=True, kind=ModelKind.CHAT)
        .first()
    )
    if run is None or model is None:
        return None
    provider = model.provider or Provider.objects.filter(base_url="").first() or Provider()
    is_named = UsageRecord.objects.filter(run_id=run_id, step=STEP).exists()
    if not provider.enabled or is_named:
        return None
    asked = run.message.parent
    names = [one["name"] for one in asked.attached or ()] if asked else []
    question = "\n".join([asked.text, *names])[:QUESTION_CHARACTERS] if asked else ""
    text = f"User: {question}\n\nAssistant: {run.message.text[:ANSWER_CHARACTERS]}"
    return Task(run, model, provider, text)


async def _ask(task: Task) -> tuple[str, Usage | None]:
    """Return the model's answer and its usage. Raises ProviderError."""
    request = CompletionRequest(
        task.model.provider_model,
        [{"role": "system", "content": INSTRUCTION}, {"role": "user", "content": task.text}],
        max_tokens=MAX_TOKENS,
        quirks=Quirks.of(task.model.quirks),
    )
    text, spent = "", None
    provider = opened(task.provider, max_retries=1, wait_limit=SECONDS)
    try:
        async with aclosing(provider.stream(request)) as batches:
            async for events in batches:
                for event in events:
                    if isinstance(event, TextDelta):
                        text += event.text
                    elif isinstance(event, Usage):
                        spent = event
    finally:
        await provider.close()
    return text, spent


def clean(answer: str) -> str:
    """Return the title in a model's answer: its first line without decoration, cut at a word; "" without one."""
    lines = [line for line in split_thoughts(answer)[0].splitlines() if line.strip()]
    line = re.sub(r"^\W*(title|name)\s*:", "", lines[0], flags=re.IGNORECASE) if lines else ""
    title = DECORATION.sub("", line).replace("\x00", "")
    return lifecycle.first_title(title) if title else ""


def _store(task: Task, title: str, spent: Usage | None) -> None:
    """Store the title, unless a person has named the conversation meanwhile, and the usage."""
    named = Conversation.objects.filter(pk=task.run.conversation_id, titled_by="", deleted_at=None)
    with transaction.atomic():
        if settings.BILLING:
            _record(task, title, spent)
        values = {"title": title, "titled_by": Conversation.TitledBy.MODEL}
        is_stored = bool(title) and named.update(**values) > 0
    if is_stored:
        conversation = Conversation.objects.get(pk=task.run.conversation_id)
        announce_conversation(conversation, active=bool(lifecycle.active_runs(conversation)))


def _record(task: Task, title: str, spent: Usage | None) -> None:
    if spent is not None:
        source = UsageRecord.Source.PROVIDER
        tokens = Tokens(
            input=spent.prompt_tokens,
            cached=spent.cached_tokens,
            output=spent.completion_tokens,
            reasoning=spent.reasoning_tokens,
        )
    else:
        source = UsageRecord.Source.COUNTED
        tokens = Tokens(
            input=typical_tokens(INSTRUCTION + task.text),
            cached=0,
            output=typical_tokens(title),
            reasoning=0,
        )
    price = pricing.in_force(task.model.provider_model)
    cost = pricing.cost(price, tokens) if price else 0
    usage.record(
        run_id=task.run.pk,
        attempt=task.run.attempt,
        step=STEP,
        purpose=Purpose.TITLE,
        user_id=task.run.user_id,
        model=task.model.provider_model,
        conversation=task.run.conversation_id,
        price_id=price.pk if price else None,
        tokens=tokens,
        source=source,
        cost=cost,
        charged=0,
        shortfall=0,
        absorbed=cost,
        finish=UsageRecord.Finish.COMPLETE if title else UsageRecord.Finish.EMPTY,
    )
