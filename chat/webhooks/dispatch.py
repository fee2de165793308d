"""Handing out the messages that are due, by the clock.

The rows in Postgres are the truth: a job that Redis lost, or a worker that died, leaves a row whose `due_at` has
passed, and the clock hands it out again. So that a slow receiver holds up no other one, only some messages are
handed out at the same time for a user, to a host, and in all; the first of each webhook come first.
"""

from __future__ import annotations

from collections import Counter
from datetime import datetime, timedelta
from typing import NamedTuple
from uuid import UUID

from django.conf import settings
from django.db.models import Count, Min
from django.utils.translation import gettext_noop as _

from chat.models import WebhookDelivery
from chat.runs import queue
from chat.webhooks.retries import MAX_ATTEMPTS
from chatproject.lib.db import prepared

EVERY = 1.0  # seconds
PATIENCE = timedelta(
    seconds=30
)  # a job that has not begun by then was lost, or is offered once more
PER_USER = 5  # messages handed out at the same time
PER_HOST = 10
IN_ALL = 100
CLEARED = 2_000  # rows deleted in one turn

Status = WebhookDelivery.Status

# The first messages that are due of each webhook, by one probe of the index for a webhook: the waiting messages of
# one do not hide those of another.
DUE = """
WITH RECURSIVE hooks AS (
  (SELECT webhook_id FROM chat_webhookdelivery
    WHERE status = 'waiting' ORDER BY webhook_id LIMIT 1)
  UNION ALL
  SELECT (SELECT delivery.webhook_id FROM chat_webhookdelivery AS delivery
    WHERE delivery.status = 'waiting' AND delivery.webhook_id > hooks.webhook_id
    ORDER BY delivery.webhook_id LIMIT 1)
  FROM hooks WHERE hooks.webhook_id IS NOT NULL
)
SELECT delivery.id, delivery.attempts, webhook.owner_id, webhook.host
FROM hooks JOIN chat_webhook AS webhook ON webhook.id = hooks.webhook_id
JOIN accounts_user AS owner ON owner.id = webhook.owner_id
CROSS JOIN LATERAL (
  SELECT id, attempts, due_at, row_number() OVER (ORDER BY due_at, id) AS place FROM (
    SELECT id, attempts, due_at FROM chat_webhookdelivery
    WHERE webhook_id = webhook.id AND status = 'waiting' AND due_at <= %(now)s
    ORDER BY due_at LIMIT %(each)s
  ) AS first
) AS delivery
WHERE webhook.active AND owner.is_active
ORDER BY delivery.place, delivery.due_at, delivery.id
"""


class Due(NamedTuple):
    """A message that is due."""

    id: UUID
    attempts: int
    user_id: int
    host: str


def hand_out(now: datetime) -> int:
    """Enqueue messages that are due; return how many.

    Raises redis.RedisError while Redis is unreachable; the rows marked by then are handed out after PATIENCE.
    """
    overdue = WebhookDelivery.objects.filter(status__in=WebhookDelivery.OPEN, due_at__lte=now)
    if not overdue.exists():
        return 0
    lost = overdue.filter(status__in=[Status.QUEUED, Status.SENDING])
    lost.filter(status=Status.SENDING, attempts__gte=MAX_ATTEMPTS).update(
        status=Status.FAILED, error=_("The workers that sent it were lost.")
    )
    lost.update(status=Status.WAITING)
    handed_out = WebhookDelivery.objects.filter(status__in=[Status.QUEUED, Status.SENDING])
    of_users: Counter[int] = Counter()
    of_hosts: Counter[str] = Counter()
    for user_id, host in handed_out.values_list("webhook__owner", "webhook__host"):
        of_users[user_id] += 1
        of_hosts[host] += 1
    chosen: list[Due] = []
    free = IN_ALL - of_users.total()
    for row in prepared.all(DUE, {"now": now, "each": PER_USER}):
        due = Due(*row)
        if len(chosen) >= free:
            break
        if of_users[due.user_id] < PER_USER and of_hosts[due.host] < PER_HOST:
            of_users[due.user_id] += 1
            of_hosts[due.host] += 1
            chosen.append(due)
    for due in chosen:
        # Another clock may hand it out at the same time.
        ours = WebhookDelivery.objects.filter(
            pk=due.id, status=Status.WAITING, attempts=due.attempts
        )
        if ours.update(status=Status.QUEUED, due_at=now + PATIENCE):
            queue.enqueue_delivery(due.id, due.attempts)
    return len(chosen)


def clear_log(now: datetime) -> None:
    """Delete a batch of the log's entries that are older than WEBHOOK_LOG_DAYS, open ones too."""
    before = now - timedelta(days=settings.WEBHOOK_LOG_DAYS)
    old = WebhookDelivery.objects.filter(created_at__lt=before).order_by("created_at")
    ids = list(old.values_list("pk", flat=True)[:CLEARED])
    WebhookDelivery.objects.filter(pk__in=ids).delete()


class Backlog(NamedTuple):
    """Messages that are not delivered yet, and the seconds for which the oldest of them has been due."""

    waiting: int
    oldest: float


def backlog(now: datetime) -> Backlog:
    """Count the messages to webhooks that are on."""
    found = WebhookDelivery.objects.filter(
        status__in=WebhookDelivery.OPEN, webhook__active=True, webhook__owner__is_active=True
    ).aggregate(waiting=Count("pk"), oldest=Min("due_at"))
    oldest = found["oldest"]
    return Backlog(found["waiting"], max(0.0, (now - oldest).total_seconds()) if oldest else 0.0)
