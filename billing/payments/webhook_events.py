"""What becomes of a webhook after it was stored: the order that it hints at is looked at.

An event is a hint and nothing more: whatever it claims, the provider is asked. So it does not
matter how often, in which order, or how late events come.
"""

from __future__ import annotations

import logging
from datetime import timedelta
from uuid import UUID

from django.db.models import F
from django.utils import timezone

from billing import queue
from billing.models import Order, ProviderEvent
from billing.payments import checkout, mail

logger = logging.getLogger(__name__)

MOST_ATTEMPTS = 12
FIRST_PAUSE = timedelta(seconds=10)  # after a failure, doubled with each further one
LONGEST_PAUSE = timedelta(hours=1)
# A job that began an attempt and is not heard of after this time has died.
ATTEMPT_TIME = timedelta(minutes=3)

Status = ProviderEvent.Status


def process(event_id: int, attempt: int | None = None) -> None:
    """Look at the order that an event is about, unless somebody else began that attempt.

    Attempts are counted from 0; none means the next one. Never raises for what went wrong with the
    event: it is stored, and tried again later.
    """
    event = ProviderEvent.objects.get(pk=event_id)
    attempt = event.attempts if attempt is None else attempt
    if not _claim(event_id, attempt):
        return
    try:
        order = _sync(event)
    except Exception as error:
        logger.exception("%s failed, attempt %d", event, attempt + 1)
        _put_off(event, attempt + 1, error)
        return
    ProviderEvent.objects.filter(pk=event_id).update(
        status=Status.PROCESSED if order else Status.IGNORED,
        order=order,
        error="",
        next_attempt_at=None,
        processed_at=timezone.now(),
    )


def _claim(event_id: int, attempt: int) -> bool:
    """Of any number of jobs for the same attempt one goes on."""
    claimed = ProviderEvent.objects.filter(
        pk=event_id, status__in=ProviderEvent.UNDONE, attempts=attempt
    ).update(attempts=F("attempts") + 1, next_attempt_at=timezone.now() + ATTEMPT_TIME)
    return bool(claimed)


def _sync(event: ProviderEvent) -> Order | None:
    order = _order_of(event)
    if order is None:
        logger.info("%s is about nothing that we know", event)
        return None
    return checkout.sync_order(order.pk, provider_order_id=event.about.get("provider_order_id", ""))


def _order_of(event: ProviderEvent) -> Order | None:
    """The order that an event is about: by the provider's id of it, by ours, by the payment's."""
    orders = Order.objects.filter(provider=event.provider)
    about = event.about
    found = None
    if about.get("provider_order_id"):
        found = orders.filter(provider_order_id=about["provider_order_id"]).first()
    if found is None and _is_id(about.get("order_id", "")):
        found = orders.filter(pk=about["order_id"]).first()
    if found is None and about.get("payment_id"):
        found = orders.filter(provider_payment_id=about["payment_id"]).first()
    return found


def _is_id(text: str) -> bool:
    try:
        UUID(text)
    except ValueError:
        return False
    return True


def _put_off(event: ProviderEvent, attempts: int, error: Exception) -> None:
    is_over = attempts >= MOST_ATTEMPTS
    pause = min(FIRST_PAUSE * 2 ** (attempts - 1), LONGEST_PAUSE)
    written = ProviderEvent.objects.filter(
        pk=event.pk, status__in=ProviderEvent.UNDONE, attempts=attempts
    ).update(
        status=Status.REVIEW if is_over else Status.FAILED,
        error=f"{type(error).__name__}: {error}"[:2000],
        next_attempt_at=None if is_over else timezone.now() + pause,
    )
    if written and is_over:
        mail.alert(
            "A webhook cannot be processed",
            f"{event} failed {attempts} times and waits in the admin. The last time: {error}",
        )


def retry(event_id: int) -> None:
    """Process an event once more from the beginning, whatever became of it.

    Raises redis.RedisError when the queue is away; then it is processed a little later.
    """
    ProviderEvent.objects.filter(pk=event_id).update(
        status=Status.RECEIVED, attempts=0, error="", next_attempt_at=timezone.now()
    )
    queue.enqueue_event(event_id, 0)
