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

from django.utils import timezone

from billing.metering import settlement
from billing.metering.pricing import Tokens
from billing.models import Hold, ModelPrice, UsageRecord
from chat import errors, protocol
from chat.llm.tokens import typical_tokens
from chat.models import Conversation, Message, MessagePart, Run
from chat.rendering import markdown
from chat.rendering.message import message_html
from chat.streaming import user_channel
from chatproject.lib import db
from chatproject.lib.db import prepared

FINISH = {
    Run.Status.DONE: UsageRecord.Finish.COMPLETE,
    Run.Status.STOPPED: UsageRecord.Finish.STOPPED,
    Run.Status.FAILED: UsageRecord.Finish.FAILED,
}


@dataclass(slots=True)
class Outcome:
    """How a run ended; `code` and `message` only for a failed one."""

    status: Run.Status
    text: str = ""
    reasoning: str = ""
    finish_reason: str = ""
    code: str = ""
    message: str = ""
    usage: protocol.Usage | None = None
    first_token_at: datetime | None = None
    by: Hold.Resolver = Hold.Resolver.WORKER


def counted_usage(prompt_tokens: int, text: str, reasoning: str) -> protocol.Usage:
    """The usage of a run whose provider told none, counted from what was delivered."""
    reasoning_tokens = typical_tokens(reasoning)
    return protocol.Usage(
        prompt_tokens=prompt_tokens,
        completion_tokens=typical_tokens(text) + reasoning_tokens,
        reasoning_tokens=reasoning_tokens,
        estimated=True,
    )


def failed(code: str, message: str = "", *, text: str = "") -> Outcome:
    """The outcome of a run that failed, with the words of ERRORS where none are given."""
    return Outcome(
        status=Run.Status.FAILED, code=code, message=message or errors.ERRORS[code], text=text
    )


def end(
    *, run_id: UUID, attempt: int, status: Run.Status, seq: int, outcome: Outcome
) -> protocol.RunEnd | None:
    """End a run that is in `status` at `attempt`; `seq` becomes the number of its last event.

    Returns the event to publish, or None when the run is not (or no more) as expected: then
    somebody else ended it or has it, and nothing was changed. The reply and what it costs are
    stored together. Raises db.MoneyBusy, and may then be called again.
    """
    html = markdown.to_html(outcome.text) if outcome.text else ""
    run = db.money_transaction(_end, run_id, attempt, status, seq, outcome, html)
    if run is None:
        return None
    user_channel.announce_conversation(run.conversation)
    return event(run)


# In plain SQL, as are the other statements here, since each run ends once: see lib.db.prepared.
LOCK = f"""
SELECT {prepared.columns(Run, "run")}, {prepared.columns(ModelPrice, "price")}
FROM chat_run AS run LEFT JOIN billing_modelprice AS price ON price.id = run.price_id
WHERE run.id = %s AND run.attempt = %s AND run.status = %s FOR NO KEY UPDATE OF run
"""  # noqa: S608 # of names alone


def _end(
    run_id: UUID, attempt: int, status: Run.Status, seq: int, outcome: Outcome, html: str
) -> Run | None:
    row = prepared.first(LOCK, [run_id, attempt, status], Run, ModelPrice)
    if row is None:
        return None
    run: Run
    run, run.price = row
    now = timezone.now()
    run.message = _store_message(run, outcome, html)
    run.conversation = _move_leaf(run, outcome.status, now)
    # Late, since others wait for the account's row (lock order: run, message, hold, account, lots).
    charge = _charge(run, outcome)
    _store(run, outcome, charge, seq, now)
    return run


STORE_MESSAGE = "UPDATE chat_message SET text = %s, html = %s, status = %s WHERE id = %s"


def _store_message(run: Run, outcome: Outcome, html: str) -> Message:
    """Write the reply into its message; returns that as far as the last event shows it."""
    message = Message(
        id=run.message_id,
        conversation_id=run.conversation_id,
        role=Message.Role.ASSISTANT,
        text=outcome.text,
        html=html,
        status=outcome.status,
    )
    prepared.change(STORE_MESSAGE, [outcome.text, html, outcome.status, run.message_id])
    message.ordered_parts = []
    if outcome.reasoning:
        reasoning = MessagePart.objects.create(
            message=message,
            position=0,
            kind=MessagePart.Kind.REASONING,
            data={"text": outcome.reasoning},
        )
        message.ordered_parts.append(reasoning)
    return message


MOVE_LEAF = f"""
UPDATE chat_conversation SET leaf_id = %(reply)s, updated_at = %(now)s
WHERE id = %(id)s AND (leaf_id = %(reply)s OR NOT %(failed)s)
RETURNING {prepared.columns(Conversation, "chat_conversation")}
"""  # noqa: S608 # of names alone


def _move_leaf(run: Run, status: Run.Status, now: datetime) -> Conversation:
    """Show the new reply, unless it failed while another one stands in its place."""
    values = {
        "id": run.conversation_id,
        "reply": run.message_id,
        "now": now,
        "failed": status == Run.Status.FAILED,
    }
    moved = prepared.first(MOVE_LEAF, values, Conversation)
    return run.conversation if moved is None else moved[0]


def _charge(run: Run, outcome: Outcome) -> settlement.Charge | None:
    """Settle what the run holds for what it delivered; None where billing is switched off."""
    is_empty = not outcome.text and not outcome.reasoning
    # Who stopped, or was failed, before the first word pays nothing, whatever the provider counted.
    nothing = is_empty and outcome.status != Run.Status.DONE
    usage = None if nothing else outcome.usage
    return settlement.charge(
        call_of(run),
        tokens=tokens(usage) if usage else None,
        source=source(usage),
        finish=FINISH[outcome.status],
        by=outcome.by,
    )


def call_of(run: Run) -> settlement.Call:
    """A run's present attempt as billing takes it; the run's price must be read with it."""
    return settlement.Call(
        run_id=run.pk,
        attempt=run.attempt,
        user_id=run.user_id,
        price=run.price,
        fee=run.fee,
        is_held=run.most > 0,
        model=run.model_snapshot["provider_model"],
        assistant=run.model_snapshot.get("assistant", ""),  # older runs do not name it
        conversation=run.conversation_id,
    )


def tokens(usage: protocol.Usage) -> Tokens:
    """The tokens of a run as billing takes them."""
    return Tokens(
        input=usage.prompt_tokens,
        cached=usage.cached_tokens,
        output=usage.completion_tokens,
        reasoning=usage.reasoning_tokens,
    )


def source(usage: protocol.Usage | None) -> UsageRecord.Source:
    """Who counted them."""
    if usage is not None and usage.estimated:
        return UsageRecord.Source.COUNTED
    return UsageRecord.Source.PROVIDER


STORE = """
UPDATE chat_run SET status = %(status)s, seq = %(seq)s, prefix = %(prefix)s,
  prefix_reasoning = %(prefix_reasoning)s, ended_at = %(ended_at)s,
  first_token_at = %(first_token_at)s, finish_reason = %(finish_reason)s,
  error_code = %(error_code)s, error_message = %(error_message)s,
  prompt_tokens = %(prompt_tokens)s, completion_tokens = %(completion_tokens)s,
  cached_tokens = %(cached_tokens)s, reasoning_tokens = %(reasoning_tokens)s,
  usage_estimated = %(usage_estimated)s, cost = %(cost)s, charged = %(charged)s
WHERE id = %(id)s
"""


def _store(
    run: Run, outcome: Outcome, charge: settlement.Charge | None, seq: int, now: datetime
) -> None:
    usage = outcome.usage
    values: dict[str, Any] = {
        "status": outcome.status,
        "seq": seq,
        "prefix": "",  # it is in the message now
        "prefix_reasoning": "",
        "ended_at": now,
        "first_token_at": outcome.first_token_at,
        "finish_reason": outcome.finish_reason[:30],
        "error_code": outcome.code,
        "error_message": outcome.message[:300],
        "prompt_tokens": usage.prompt_tokens if usage else None,
        "completion_tokens": usage.completion_tokens if usage else None,
        "cached_tokens": usage.cached_tokens if usage else None,
        "reasoning_tokens": usage.reasoning_tokens if usage else None,
        "usage_estimated": bool(usage and usage.estimated),
        "cost": charge.cost if charge else None,
        "charged": charge.charged if charge else None,
    }
    for name, value in values.items():
        setattr(run, name, value)
    prepared.change(STORE, {**values, "id": run.pk})


def read(run_id: UUID) -> protocol.RunEnd | None:
    """The last event of a run that is over, from its row; None while it is not.

    Most who ask have just begun to follow it, so the rest of the row is read only when it is over.
    """
    if Run.objects.active().filter(pk=run_id).exists():
        return None
    return event(Run.objects.select_related("message").get(pk=run_id))


def event(run: Run) -> protocol.RunEnd:
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
        "html": message_html(message),
        "usage": _usage(run),
        "cost": run.charged,
    }
    if run.status == Run.Status.DONE:
        return protocol.RunDone(**common, finish_reason=run.finish_reason)
    if run.status == Run.Status.STOPPED:
        return protocol.RunStopped(**common)
    return protocol.RunFailed(**common, code=run.error_code, message=run.error_message)


def _usage(run: Run) -> protocol.Usage | None:
    if run.prompt_tokens is None:
        return None
    return protocol.Usage(
        prompt_tokens=run.prompt_tokens,
        completion_tokens=run.completion_tokens or 0,
        cached_tokens=run.cached_tokens or 0,
        reasoning_tokens=run.reasoning_tokens or 0,
        estimated=run.usage_estimated,
    )
