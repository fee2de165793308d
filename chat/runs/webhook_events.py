"""The events of outgoing webhooks: each is written to the outbox by the transaction in which it happens.

The clock hands the rows out to the workers (chat/webhooks/). docs/webhooks.md describes the bodies.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from django.utils import timezone

from billing.credits import exact
from billing.reports.balances import Balance
from chat.models import Run, Webhook, WebhookDelivery

Event = Webhook.Event


def of_run(webhook_ids: Iterable[UUID], run: Run) -> list[WebhookDelivery]:
    """Return the rows of a run that has just ended, to be stored with its end."""
    error = {"code": run.error_code, "message": run.error_message} if run.error_code else None
    assert run.ended_at is not None
    # As GET /api/v1/runs/… has it, without its text.
    data = {
        "id": str(run.pk),
        "conversation": str(run.conversation_id),
        "message": str(run.message_id),
        "status": str(run.status),
        "attempt": run.attempt,
        "model": run.model_snapshot.get("name", ""),
        "finish_reason": run.finish_reason,
        "error": error,
        "usage": run.usage,
        "charged": None if run.charged is None else exact(run.charged),
        "queued_at": at(run.queued_at),
        "started_at": at(run.started_at) if run.started_at else None,
        "ended_at": at(run.ended_at),
    }
    return [delivery(one, Event.RUN_DONE, data, run.ended_at, run=run.pk) for one in webhook_ids]


def credits_low(*, balance: Balance, **_: Any) -> None:
    """Store the event that a balance has become low, in the caller's transaction."""
    webhooks = Webhook.objects.filter(
        owner=balance.account.user_id, active=True, events__contains=[Event.CREDITS_LOW.value]
    )
    now = timezone.now()
    data = {
        "balance": exact(balance.balance),
        "available": exact(balance.available),
        "warning": balance.low,
    }
    # Locked, so that none is deleted before the commit.
    ids = webhooks.select_for_update(no_key=True).values_list("pk", flat=True)
    WebhookDelivery.objects.bulk_create(delivery(one, Event.CREDITS_LOW, data, now) for one in ids)


def delivery(
    webhook_id: UUID, event: str, data: dict[str, Any], now: datetime, run: UUID | None = None
) -> WebhookDelivery:
    """Return a row of the outbox that is due at once."""
    body = {"type": str(event), "timestamp": at(now), "data": data}
    return WebhookDelivery(
        webhook_id=webhook_id,
        event=str(event),
        run=run,
        body=json.dumps(body, ensure_ascii=False),
        due_at=now,
        created_at=now,
    )


def at(moment: datetime) -> str:
    """Return a time as bodies have it (RFC 3339, in UTC)."""
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")
