"""One attempt to deliver a message.

An attempt is claimed by compare-and-set, so that of any number of jobs one makes it. A message is delivered at
least once: a worker that dies after the receiver has accepted it leaves it to another attempt, with the same
`webhook-id`.
"""

from __future__ import annotations

import json
import logging
import time
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

from django.db import transaction
from django.db.models import F, Q
from django.utils import timezone
from django.utils.translation import gettext_noop as _

from chat.models import Message, Webhook, WebhookDelivery
from chat.webhooks import client, ending, signing
from chat.webhooks.retries import MAX_ATTEMPTS, pause
from chatproject.lib import db, encryption, metrics, rate_limits

logger = logging.getLogger(__name__)

Status = WebhookDelivery.Status

# Longer than an attempt takes: without a result by then it has lost its worker.
ATTEMPT_TIME = timedelta(seconds=60)
# A webhook is switched off after a failure when no delivery has succeeded for so long.
DISABLED_AFTER = timedelta(days=3)
GONE = 410


@dataclass(frozen=True, slots=True)
class Attempt:
    """A claimed attempt; `number` counts from 1."""

    delivery_id: UUID
    webhook_id: UUID
    number: int
    url: str
    body: bytes
    headers: dict[str, str]


async def make(delivery_id: UUID, attempts: int) -> None:
    """Make the attempt after `attempts` earlier ones, unless another job has it."""
    attempt = await db.run(_claim, delivery_id, attempts)
    if attempt is None:
        return
    if attempt.headers:
        answer = await client.post(attempt.url, attempt.body, attempt.headers)
    else:
        answer = client.Answer(None, error=_("The secret cannot be read. Create a new one."))
    await db.run(record, attempt, answer)


def _claim(delivery_id: UUID, attempts: int) -> Attempt | None:
    queued = WebhookDelivery.objects.filter(
        pk=delivery_id,
        status=Status.QUEUED,
        attempts=attempts,
        webhook__active=True,
        webhook__owner__is_active=True,
    )
    delivery = queued.select_related("webhook").first()
    if delivery is None:
        return None
    webhook, now = delivery.webhook, timezone.now()
    ours = WebhookDelivery.objects.filter(pk=delivery_id, status=Status.QUEUED, attempts=attempts)
    try:
        rate_limits.hit("webhook_deliveries", webhook.owner_id)
    except rate_limits.RateLimited as limited:
        later = now + timedelta(seconds=limited.retry_after)
        ours.update(status=Status.WAITING, due_at=later)
        return None
    claimed = ours.update(
        status=Status.SENDING,
        attempts=F("attempts") + 1,
        attempted_at=now,
        due_at=now + ATTEMPT_TIME,
    )
    if not claimed:
        return None
    body = _body(delivery, webhook).encode()
    secrets = [webhook.secret]
    if webhook.old_secret_until is not None and webhook.old_secret_until > now:
        secrets.append(webhook.old_secret)
    try:
        headers = signing.headers(
            [encryption.decrypt(secret) for secret in secrets],
            message_id=delivery.message_id,
            timestamp=int(time.time()),
            body=body,
        )
    except encryption.Undecryptable:
        headers = {}
    return Attempt(delivery_id, webhook.pk, attempts + 1, webhook.url, body, headers)


def _body(delivery: WebhookDelivery, webhook: Webhook) -> str:
    """Return the body, with the text of the reply if the webhook has it; null after the chat was deleted.

    Null also for a temporary chat, whose text must not outlast it elsewhere; a call of the API is no such chat.
    """
    if delivery.run is None or not webhook.includes_text:
        return delivery.body
    body = json.loads(delivery.body)
    is_kept = Q(conversation__temporary=False) | Q(conversation__api_call__isnull=False)
    body["data"]["text"] = (
        Message.objects.filter(is_kept, run=delivery.run, conversation__deleted_at=None)
        .values_list("text", flat=True)
        .first()
    )
    return json.dumps(body, ensure_ascii=False)


def record(attempt: Attempt, answer: client.Answer) -> None:
    """Store the result of an attempt, unless it came too late: then another attempt was begun."""
    now = timezone.now()
    # Given up meanwhile, as the webhook was switched off, it may still have been delivered.
    before = [Status.SENDING, Status.FAILED] if answer.is_accepted else [Status.SENDING]
    sending = WebhookDelivery.objects.filter(
        pk=attempt.delivery_id, status__in=before, attempts=attempt.number
    )
    is_last = attempt.number >= MAX_ATTEMPTS or answer.status == GONE
    if answer.is_accepted:
        status, outcome = Status.DELIVERED, "delivered"
    elif is_last:
        status, outcome = Status.FAILED, "failed"
    else:
        status, outcome = Status.WAITING, "retried"
    due_at = now if is_last else now + pause(attempt.number, answer.retry_after)
    with transaction.atomic():
        is_ours = sending.update(
            status=status,
            due_at=due_at,
            response_status=answer.status,
            response_body=answer.body,
            error=answer.error[:300],
        )
        webhook = Webhook.objects.filter(pk=attempt.webhook_id)
        if answer.is_accepted:
            webhook.filter(failing_since__isnull=False).update(failing_since=None)
        else:
            webhook.filter(failing_since=None).update(failing_since=now)
    metrics.WEBHOOK_DELIVERIES.labels(outcome).inc()
    if not is_ours:
        logger.info("the result of delivery %s came too late", attempt.delivery_id)
    if answer.status == GONE:
        ending.disable(attempt.webhook_id, Webhook.Disabled.GONE)
    elif not answer.is_accepted and webhook.filter(failing_since__lte=now - DISABLED_AFTER):
        ending.disable(attempt.webhook_id, Webhook.Disabled.FAILING)
