"""Reads the rows that `judge` compares."""

from __future__ import annotations

from collections import Counter
from dataclasses import fields
from typing import Any

from billing.ledger import audit
from billing.models import Hold, LedgerEntry, ModelPrice, UsageRecord
from chat.models import Message, MessagePart, Run
from tests.chaos.rounds.asks import Ask
from tests.chaos.rounds.evidence import Price, RunRow, Used


def run_id(client_id: str) -> str:
    """The id of a run. Raises Run.DoesNotExist."""
    return str(Run.objects.values_list("pk", flat=True).get(client_id=client_id))


def of_round(asks: list[Ask], prefix: str) -> dict[str, Any]:
    """The rows of all runs whose client_id begins with `prefix`: arguments of Evidence."""
    texts = {ask.client_id: ask.text for ask in asks}
    rows = list(Run.objects.filter(client_id__startswith=prefix).select_related("message", "model"))
    ids = [row.pk for row in rows]
    sent = Counter(
        Message.objects.filter(role="user", text__in=texts.values()).values_list("text", flat=True)
    )
    thoughts = dict(
        MessagePart.objects.filter(message__run__in=ids).values_list("message_id", "data")
    )
    charged = LedgerEntry.objects.filter(kind="usage", hold__in=ids)
    price = ModelPrice.objects.get()  # one: all models have the same name at the provider
    names = [of.name for of in fields(Used)]
    return {
        "runs": [
            RunRow(
                id=row.pk,
                client_id=row.client_id,
                conversation=str(row.conversation_id),
                continues=bool(row.model.continuation),
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
        "charges": {hold: -amount for hold, amount in charged.values_list("hold_id", "amount")},
        "price": Price(price.in_per_m, price.cached_in_per_m, price.out_per_m),
        "ledger": [f"{problem.where}: {problem.message}" for problem in audit.check()],
    }
