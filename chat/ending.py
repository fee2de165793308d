"""The end of a run: one transaction, and the event that tells of it.

Three come here: the worker that made the reply, somebody who stops a run that no worker has yet,
and the sweeper. Whoever's conditional update finds the run as it expects ends it; the others do
nothing. The event is made from the row, so that it is the same for who follows live and for who
comes back a day later.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from django.db import transaction
from django.db.models import Q
from django.utils import timezone

from chat import conversations, events, markdown, rendering
from chat.models import Conversation, Message, MessagePart, Run


@dataclass(slots=True)
class Outcome:
    """How a run ended; `code` and `message` only for a failed one."""

    status: Run.Status
    text: str = ""
    reasoning: str = ""
    finish_reason: str = ""
    code: str = ""
    message: str = ""
    usage: events.Usage | None = None
    first_token_at: datetime | None = None


def failed(code: str, message: str = "", *, text: str = "") -> Outcome:
    """The outcome of a run that failed, with the words of ERRORS where none are given."""
    return Outcome(
        status=Run.Status.FAILED, code=code, message=message or events.ERRORS[code], text=text
    )


def end(
    *, run_id: UUID, attempt: int, status: Run.Status, seq: int, outcome: Outcome
) -> events.RunEnd | None:
    """End a run that is in `status` at `attempt`; `seq` becomes the number of its last event.

    Returns the event to publish, or None when the run is not (or no more) as expected: then
    somebody else ended it or has it, and nothing was changed.
    """
    now = timezone.now()
    html = markdown.to_html(outcome.text) if outcome.text else ""
    usage = outcome.usage
    with transaction.atomic(durable=True):
        ended = Run.objects.filter(pk=run_id, attempt=attempt, status=status).update(
            status=outcome.status,
            seq=seq,
            ended_at=now,
            first_token_at=outcome.first_token_at,
            finish_reason=outcome.finish_reason[:30],
            error_code=outcome.code,
            error_message=outcome.message[:300],
            prompt_tokens=usage.prompt_tokens if usage else None,
            completion_tokens=usage.completion_tokens if usage else None,
            cached_tokens=usage.cached_tokens if usage else None,
            reasoning_tokens=usage.reasoning_tokens if usage else None,
            usage_estimated=bool(usage and usage.estimated),
        )
        if not ended:
            return None
        run = Run.objects.select_related("conversation", "message", "model").get(pk=run_id)
        message = run.message
        message.text, message.html, message.status = outcome.text, html, outcome.status
        message.save(update_fields=["text", "html", "status"])
        if outcome.reasoning:
            MessagePart.objects.create(
                message=message,
                position=0,
                kind=MessagePart.Kind.REASONING,
                data={"text": outcome.reasoning},
            )
        _move_leaf(run, now)
        # Money: settling the run's hold belongs here, inside this transaction, so that the reply
        # and its price are stored together (lock order: run, message, hold, account, lots).
    conversations.announce(run.conversation)
    return event(run)


def _move_leaf(run: Run, now: datetime) -> None:
    """Show the new reply, unless it failed while another one stands in its place."""
    shown = Q(leaf=run.message_id) if run.status == Run.Status.FAILED else Q()
    moved = Conversation.objects.filter(Q(pk=run.conversation_id) & shown).update(
        leaf=run.message_id, updated_at=now
    )
    if moved:
        run.conversation.leaf_id = run.message_id
        run.conversation.updated_at = now


def read(run_id: UUID) -> events.RunEnd | None:
    """The last event of a run that is over, from its row; None while it is not."""
    run = Run.objects.select_related("conversation", "message", "model").get(pk=run_id)
    return event(run) if run.is_over else None


def event(run: Run) -> events.RunEnd:
    """The event that tells how a run ended."""
    message: Message = run.message
    # The page shows the run below the message: hand it over instead of asking the database again.
    message.run = run
    common: dict[str, Any] = {
        "run": run.id,
        "attempt": run.attempt,
        "seq": run.seq,
        "conversation": run.conversation_id,
        "reply": message.id,
        "text": message.text,
        "html": rendering.message_html(message),
        "usage": _usage(run),
    }
    if run.status == Run.Status.DONE:
        return events.RunDone(**common, finish_reason=run.finish_reason)
    if run.status == Run.Status.STOPPED:
        return events.RunStopped(**common)
    return events.RunFailed(**common, code=run.error_code, message=run.error_message)


def _usage(run: Run) -> events.Usage | None:
    if run.prompt_tokens is None:
        return None
    return events.Usage(
        prompt_tokens=run.prompt_tokens,
        completion_tokens=run.completion_tokens or 0,
        cached_tokens=run.cached_tokens or 0,
        reasoning_tokens=run.reasoning_tokens or 0,
        estimated=run.usage_estimated,
    )
