"""Enqueues payment rows that have waited too long: webhooks, open orders, open refunds."""

from __future__ import annotations

from datetime import datetime, timedelta
from uuid import UUID

from django.conf import settings
from django.db import transaction
from django.db.models import DateTimeField, ExpressionWrapper, F, Q
from django.db.models.expressions import Combinable
from django.utils import timezone

from billing import queue
from billing.models import Order, ProviderEvent, Refund
from billing.payments.providers import sandbox

# An event whose job has not begun after this time is put into the queue again.
EVENT_PATIENCE = timedelta(seconds=30)
# After being put into the queue by `poll`, an event, a refund waits so long for its job.
POLL_PAUSE = timedelta(minutes=1)
# How long after its making an open order's provider is asked. Banks may answer after three days.
ORDER_AGES = (
    timedelta(minutes=2),
    timedelta(minutes=10),
    timedelta(hours=1),
    timedelta(hours=24),
    timedelta(hours=72),
)
# A refund whose fate is unknown, and one that the provider is working on.
REFUND_PAUSE = timedelta(minutes=2)
REFUND_PATIENCE = timedelta(hours=1)
POLL_MOST = 200  # of each kind in one turn


def poll(now: datetime | None = None) -> None:
    """Put into the queue whatever has waited too long: events, open orders, open refunds.

    Called by the clock every few seconds. Raises redis.RedisError while the queue is away; what was
    picked then is picked again at its next time.
    """
    now = now or timezone.now()
    for event_id, attempt in _pick_events(now):
        queue.enqueue_event(event_id, attempt)
    for order_id in _pick_orders(now):
        queue.enqueue_sync(order_id)
    for refund_id in _pick_refunds(now):
        queue.enqueue_refund(refund_id)
    _collect_late_payments(now)


def _pick_events(now: datetime) -> list[tuple[int, int]]:
    waiting = Q(next_attempt_at=None, received_at__lte=now - EVENT_PATIENCE)
    with transaction.atomic():
        picked = list(
            ProviderEvent.objects.select_for_update(skip_locked=True)
            .filter(waiting | Q(next_attempt_at__lte=now), status__in=ProviderEvent.UNDONE)
            .order_by("pk")
            .values_list("pk", "attempts")[:POLL_MOST]
        )
        ProviderEvent.objects.filter(pk__in=[pk for pk, _ in picked]).update(
            next_attempt_at=now + POLL_PAUSE
        )
    return picked


def _pick_orders(now: datetime) -> list[UUID]:
    due = Q(pk=None)
    for age in ORDER_AGES:
        # Not asked since it came to that age.
        unasked = Q(asked_at=None) | Q(asked_at__lt=_plus("created_at", age))
        due |= unasked & Q(created_at__lte=now - age)
    with transaction.atomic():
        picked = list(
            Order.objects.select_for_update(skip_locked=True, no_key=True)
            .filter(due, status__in=Order.OPEN)
            .order_by("pk")
            .values_list("pk", flat=True)[:POLL_MOST]
        )
        Order.objects.filter(pk__in=picked).update(asked_at=now)
    return picked


def _plus(field: str, age: timedelta) -> Combinable:
    return ExpressionWrapper(F(field) + age, output_field=DateTimeField())


def _pick_refunds(now: datetime) -> list[UUID]:
    unknown = Q(provider_refund_id=None, updated_at__lte=now - REFUND_PAUSE)
    with transaction.atomic():
        picked = list(
            Refund.objects.select_for_update(skip_locked=True, no_key=True)
            .filter(unknown | Q(updated_at__lte=now - REFUND_PATIENCE), status__in=Refund.OPEN)
            .order_by("pk")
            .values_list("pk", flat=True)[:POLL_MOST]
        )
        Refund.objects.filter(pk__in=picked).update(updated_at=now)
    return picked


def _collect_late_payments(now: datetime) -> None:
    if not settings.PAYMENTS_SANDBOX:
        return

    for payment_id, event_types in sandbox.collect_late(now):
        for event_type in event_types:
            queue.enqueue_sandbox(payment_id, event_type)
