"""Reads the rows that `judge` compares."""

from __future__ import annotations

from collections import Counter
from dataclasses import fields
from typing import Any
from uuid import UUID

from accounts.models import User
from billing.ledger import audit
from billing.models import Hold, LedgerEntry, ModelPrice, UsageRecord
from chat.errors import ChatError
from chat.models import Conversation, Message, MessageAttachment, MessagePart, NextMessage, Run
from chat.runs import next_message
from tests.chaos.rounds.asks import Ask
from tests.chaos.rounds.evidence import Price, RunRow, Used


def run_id(client_id: str) -> str:
    """The id of a run. Raises Run.DoesNotExist."""
    return str(Run.objects.values_list("pk", flat=True).get(client_id=client_id))


def next_of(client_id: str, conversation: str) -> tuple[Run | None, NextMessage | None]:
    """The run of a next message, and the row in which it still waits."""
    waiting = NextMessage.objects.filter(conversation=UUID(conversation)).exclude(state="")
    row = waiting.first()  # before the run, which is stored when the row is emptied
    return Run.objects.filter(client_id=client_id).first(), row


def decide(user: int, conversation: str) -> None:
    """Send a paused next message, as its user does; remove it if the reply before it has no text."""
    owner, found = User.objects.get(pk=user), Conversation.objects.select_related("leaf")
    leaf = found.get(pk=conversation).leaf
    act = next_message.send if leaf is not None and leaf.text else next_message.remove
    try:
        act(user=owner, conversation_id=UUID(conversation))
    except ChatError as error:
        if error.code not in {"already_sent", "unavailable", "busy", "rate_limited"}:
            raise


def of_round(asks: list[Ask], prefix: str) -> dict[str, Any]:
    """The rows of all runs whose client_id begins with `prefix`: arguments of Evidence."""
    texts = {ask.client_id: ask.text for ask in asks}
    found = Run.objects.filter(client_id__startswith=prefix)
    rows = list(found.select_related("message__parent", "model"))
    ids = [row.pk for row in rows]
    conversations = {row.conversation_id for row in rows}
    files: Counter[UUID | None] = Counter(
        MessageAttachment.objects.filter(
            message__in=[row.message.parent_id for row in rows]
        ).values_list("message_id", flat=True)
    )
    sent = Counter(
        Message.objects.filter(role="user", text__in=texts.values()).values_list("text", flat=True)
    )
    thoughts = dict(
        MessagePart.objects.filter(message__run__in=ids).values_list("message_id", "data")
    )
    charges: Counter[UUID] = Counter()
    for hold, amount in LedgerEntry.objects.filter(kind="usage", hold__in=ids).values_list(
        "hold_id", "amount"
    ):
        charges[hold] -= amount
    unsent = NextMessage.objects.filter(conversation__in=conversations).exclude(state="")
    price = ModelPrice.objects.get()  # one: all models have the same name at the provider
    names = [of.name for of in fields(Used)]
    return {
        "runs": [
            RunRow(
                id=row.pk,
                client_id=row.client_id,
                conversation=str(row.conversation_id),
                continues=bool(row.model.continuation or row.continued),
                status=row.status,
                attempt=row.attempt,
                text=row.message.text,
                reasoning=thoughts.get(row.message_id, {}).get("text", ""),
                error_code=row.error_code,
                queued_at=row.queued_at,
                ended_at=row.ended_at,
                cost=row.cost,
                charged=row.charged,
                sent=sent[texts.get(row.client_id, "")],
                message=row.message_id,
                follows=row.message.parent.parent_id if row.message.parent else None,
                continued=row.continued,
                files=files[row.message.parent_id],
            )
            for row in rows
        ],
        "used": [Used(**of) for of in UsageRecord.objects.filter(run_id__in=ids).values(*names)],
        "holds": {
            pk: (status, settled or 0)
            for pk, status, settled in Hold.objects.filter(pk__in=ids).values_list(
                "pk", "status", "settled"
            )
        },
        "charges": dict(charges),
        "leaves": {
            str(pk): leaf
            for pk, leaf in Conversation.objects.filter(pk__in=conversations).values_list(
                "pk", "leaf_id"
            )
        },
        "unsent": {str(one.pk): f"{one.state} {one.code} {one.text!r}" for one in unsent},
        "price": Price(price.in_per_m, price.cached_in_per_m, price.out_per_m),
        "ledger": [f"{problem.where}: {problem.message}" for problem in audit.check()],
    }
