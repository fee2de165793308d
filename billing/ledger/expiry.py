"""Scheduled expiry: overdue holds, credits past their date, and the mails that announce it.

Each account is processed in a transaction of its own, so that no user waits for another account.
Every function may be called at any time and concurrently, and leaves work beyond its time limit to
the next call.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial
from itertools import groupby
from typing import Any
from uuid import UUID

from django.conf import settings
from django.core.mail import send_mail
from django.db import transaction
from django.db.models import Exists, F, OuterRef
from django.template.loader import render_to_string
from django.urls import reverse

from billing import credits
from billing.ledger import postings
from billing.models import Account, CreditLot, ExpiryNotice, Hold
from chatproject.lib import languages
from chatproject.lib.batches import apart
from chatproject.lib.db import money_transaction

logger = logging.getLogger(__name__)

BATCH = 100  # rows per query
SECONDS = 60.0  # time limit of one call

# Days before credits expire on which their owner is notified.
NOTICES = (14, 3)


def release_holds(now: datetime) -> int:
    """Release holds past their end; return how many.

    Of runs there should be none: chat's sweeper settles those of dead workers long before, and long runs extend their
    hold. A call for embeddings leaves one if its web process was killed. So each one is logged as a warning.
    """
    deadline = time.monotonic() + SECONDS
    released = 0
    seen: list[UUID] = []
    overdue = Hold.objects.filter(status=Hold.Status.ACTIVE, expires_at__lte=now)
    while time.monotonic() < deadline:
        batch = list(overdue.exclude(pk__in=seen).order_by("expires_at")[:BATCH])
        if not batch:
            break
        seen += [hold.pk for hold in batch]
        for hold in batch:
            released += _attempt(partial(_release, hold.pk, now), f"hold {hold.key}")
    return released


def _release(hold_id: UUID, now: datetime) -> bool:
    # A locked hold is being settled or extended at this moment.
    hold = (
        Hold.objects.select_for_update(no_key=True, skip_locked=True)
        .filter(pk=hold_id, status=Hold.Status.ACTIVE, expires_at__lte=now)
        .first()
    )
    if hold is None:
        return False
    postings.release(hold_id=hold_id, by=Hold.Resolver.EXPIRY)
    logger.warning(
        "hold %s of account %d was never resolved: released %d micro-credits",
        hold.key,
        hold.account_id,
        hold.amount,
    )
    return True


def expire_lots(now: datetime) -> int:
    """Expire credits past their date; return the number of accounts that lost some."""
    deadline = time.monotonic() + SECONDS
    taken = last = 0
    # Held credits never expire, so an account that is held in full is skipped.
    due = Account.objects.filter(next_expiry_at__lte=now, balance__gt=F("held")).order_by("pk")
    while time.monotonic() < deadline:
        batch = list(due.filter(pk__gt=last).values_list("pk", flat=True)[:BATCH])
        if not batch:
            break
        last = batch[-1]
        for account_id in batch:
            expire = partial(postings.expire, account_id=account_id)
            taken += _attempt(expire, f"account {account_id}") > 0
    return taken


def _attempt(fn: Callable[[], int], what: str) -> int:
    """Run one money transaction; 0 if it failed, which leaves it to the next call."""
    with apart(what):
        return money_transaction(fn)
    return 0


def notify(now: datetime) -> int:
    """Mail the owners of credits that expire soon, once per lot and notice; return how many mails.

    A plan's monthly credits are left out, as they are replaced when they expire, and so are credits
    that were granted for fewer days than the notice.
    """
    deadline = time.monotonic() + SECONDS
    sent = 0
    for days in sorted(NOTICES):
        # After the notice of three days, the one of fourteen is superfluous.
        noted = ExpiryNotice.objects.filter(lot=OuterRef("pk"), days__lte=days)
        lots = (
            CreditLot.objects.filter(
                remaining__gt=0,
                expires_at__gt=now,
                expires_at__lte=now + timedelta(days=days),
                effective_at__lt=F("expires_at") - timedelta(days=days),
                account__status=Account.Status.ACTIVE,
                account__user__is_active=True,
            )
            .exclude(Exists(noted))
            .exclude(source_key__startswith="allowance:")
            .select_related("account__user")
            .order_by("account_id", "expires_at", "pk")
        )
        for account_id, group in groupby(list(lots[: BATCH * 10]), key=lambda lot: lot.account_id):
            if time.monotonic() > deadline:
                return sent
            with apart(f"the notice of expiry for account {account_id}"):
                sent += _send_notice(list(group), days)
    return sent


@transaction.atomic
def _send_notice(lots: list[CreditLot], days: int) -> bool:
    # Lots that a concurrent call has just noted are not ours.
    ours = [lot for lot in lots if ExpiryNotice.objects.get_or_create(lot=lot, days=days)[1]]
    if not ours:
        return False
    user: Any = ours[0].account.user
    with languages.use(user.language):
        context = {
            "amount": credits.show(sum(lot.remaining for lot in ours)),
            "days": days,
            "lots": [(credits.show(lot.remaining), lot.expires_at) for lot in ours],
            "link": f"{settings.SITE_URL}{reverse('billing:overview')}"
            if settings.SITE_URL
            else "",
            "site_name": settings.SITE_NAME,
        }
        subject = render_to_string("billing/email/credits_expire_subject.txt", context).strip()
        body = render_to_string("billing/email/credits_expire_message.txt", context)
        send_mail(subject, body, None, [user.email])
    return True
