"""Enqueues payment rows that have waited too long: webhooks, open orders, open refunds."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from django.conf import settings
from django.db import transaction
from django.db.models import DateTimeField, ExpressionWrapper, F, Q, QuerySet
from django.utils import timezone

from billing import queue
from billing.models import Order, ProviderEvent, Refund
from billing.payments.providers import sandbox
from chatproject.lib.batches import apart

# An event whose job has not begun after this time is enqueued again.
EVENT_PATIENCE = timedelta(seconds=30)
# An event enqueued by `poll` is enqueued again after this time.
POLL_PAUSE = timedelta(minutes=1)
# Ages of an open order at which its provider is asked. Banks may answer after three days.
ORDER_AGES = (
    timedelta(minutes=2),
    timedelta(minutes=10),
    timedelta(hours=1),
    timedelta(hours=24),
    timedelta(hours=72),
)
# A refund with an unknown outcome, and one that the provider is working on.
REFUND_PAUSE = timedelta(minutes=2)
REFUND_PATIENCE = timedelta(hours=1)
POLL_LIMIT = 200  # of each kind in one turn


def poll(now: datetime | None = None) -> None:
    """Enqueue events, open orders and open refunds that are overdue.

    Called by the clock every few seconds. Raises redis.RedisError while Redis is unreachable; the
    rows claimed by then are due again after their pause.
    """
    now = now or timezone.now()
    for step in (_poll_events, _poll_orders, _poll_refunds, _poll_sandbox):
        with apart(step.__name__.removeprefix("_").replace("_", " ")):
            step(now)


def _poll_events(now: datetime) -> None:
    new = Q(next_attempt_at=None, received_at__lte=now - EVENT_PATIENCE)
    events = ProviderEvent.objects.filter(status__in=ProviderEvent.UNDONE).filter(
        new | Q(next_attempt_at__lte=now)
    )
    for event_id, attempt in _claim(events, "attempts", next_attempt_at=now + POLL_PAUSE):
        queue.enqueue_event(event_id, attempt)


def _poll_orders(now: datetime) -> None:
    due = Q(pk=None)
    for age in ORDER_AGES:
        # Not asked since it reached that age.
        reached = ExpressionWrapper(F("created_at") + age, output_field=DateTimeField())
        due |= (Q(asked_at=None) | Q(asked_at__lt=reached)) & Q(created_at__lte=now - age)
    orders = Order.objects.filter(due, status__in=Order.OPEN)
    for (order_id,) in _claim(orders, asked_at=now):
        queue.enqueue_sync(order_id)


def _poll_refunds(now: datetime) -> None:
    unknown = Q(provider_refund_id=None, updated_at__lte=now - REFUND_PAUSE)
    refunds = Refund.objects.filter(status__in=Refund.OPEN).filter(
        unknown | Q(updated_at__lte=now - REFUND_PATIENCE)
    )
    for (refund_id,) in _claim(refunds, updated_at=now):
        queue.enqueue_refund(refund_id)


def _poll_sandbox(now: datetime) -> None:
    """Deliver the late events of sandbox payments."""
    if settings.PAYMENTS_SANDBOX:
        for payment_id, event_types in sandbox.collect_late(now):
            for event_type in event_types:
                queue.enqueue_sandbox(payment_id, event_type)


def _claim(rows: QuerySet[Any], *fields: str, **mark: datetime) -> list[tuple[Any, ...]]:
    """Mark rows that no other transaction has locked; return their keys and further fields."""
    with transaction.atomic():
        claimed = list(
            rows.select_for_update(skip_locked=True, no_key=True)
            .order_by("pk")
            .values_list("pk", *fields)[:POLL_LIMIT]
        )
        rows.model.objects.filter(pk__in=[row[0] for row in claimed]).update(**mark)
    return claimed
