"""Processing of stored webhooks: each one syncs the order that it refers to.

An event is only a hint: whatever it claims, the provider is asked. So events may be repeated,
reordered or late.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from datetime import timedelta
from uuid import UUID

from django.db.models import F
from django.utils import timezone

from billing import queue
from billing.models import Order, ProviderEvent
from billing.payments import checkout, mail

logger = logging.getLogger(__name__)

MAX_ATTEMPTS = 12
FIRST_PAUSE = timedelta(seconds=10)  # after a failure, doubled with each further one
MAX_PAUSE = timedelta(hours=1)
# An attempt without a result after this time is lost with its job.
ATTEMPT_TIME = timedelta(minutes=3)

Status = ProviderEvent.Status


def process(event_id: int, attempt: int | None = None) -> None:
    """Sync the order that an event is about, unless another job has claimed that attempt.

    Attempts are counted from 0; None means the next one. A failure to process the event is not
    raised: it is stored, and the event is retried later.
    """
    event = ProviderEvent.objects.get(pk=event_id)
    attempt = event.attempts if attempt is None else attempt
    if not claim(event_id, attempt):
        return
    try:
        order = _order_of(event)
        if order is None:
            logger.info("%s is about no order of ours", event)
        else:
            order = checkout.sync_order(
                order.pk, provider_order_id=event.about.get("provider_order_id", "")
            )
    except Exception as error:
        logger.exception("%s failed, attempt %d", event, attempt + 1)
        _reschedule(event, attempt + 1, error)
        return
    ProviderEvent.objects.filter(pk=event_id).update(
        status=Status.PROCESSED if order else Status.IGNORED,
        order=order,
        error="",
        next_attempt_at=None,
        processed_at=timezone.now(),
    )


def claim(event_id: int, attempt: int) -> bool:
    """Claim an attempt by compare-and-set: of any number of jobs for it, one gets True."""
    claimed = ProviderEvent.objects.filter(
        pk=event_id, status__in=ProviderEvent.UNDONE, attempts=attempt
    ).update(attempts=F("attempts") + 1, next_attempt_at=timezone.now() + ATTEMPT_TIME)
    return bool(claimed)


def _order_of(event: ProviderEvent) -> Order | None:
    """Return the order that an event is about, by the provider's id, by ours, or by the payment's."""
    orders = Order.objects.filter(provider=event.provider)
    about = event.about
    found = None
    if about.get("provider_order_id"):
        found = orders.filter(provider_order_id=about["provider_order_id"]).first()
    if found is None:
        with suppress(ValueError):  # not a UUID
            found = orders.filter(pk=UUID(about.get("order_id", ""))).first()
    if found is None and about.get("payment_id"):
        found = orders.filter(provider_payment_id=about["payment_id"]).first()
    return found


def _reschedule(event: ProviderEvent, attempts: int, error: Exception) -> None:
    is_last = attempts >= MAX_ATTEMPTS
    pause = min(FIRST_PAUSE * 2 ** (attempts - 1), MAX_PAUSE)
    written = ProviderEvent.objects.filter(
        pk=event.pk, status__in=ProviderEvent.UNDONE, attempts=attempts
    ).update(
        status=Status.REVIEW if is_last else Status.FAILED,
        error=f"{type(error).__name__}: {error}"[:2000],
        next_attempt_at=None if is_last else timezone.now() + pause,
    )
    if written and is_last:
        mail.alert(
            "A webhook cannot be processed",
            f"{event} failed {attempts} times and is left for review in the admin. Last error: {error}",
        )


def retry(event_id: int) -> None:
    """Process an event once more from its first attempt, whatever its status.

    Raises redis.RedisError while Redis is unreachable; then the poller enqueues it a little later.
    """
    ProviderEvent.objects.filter(pk=event_id).update(
        status=Status.RECEIVED, attempts=0, error="", next_attempt_at=timezone.now()
    )
    queue.enqueue_event(event_id, 0)
