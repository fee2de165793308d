"""What ends by the clock: holds that nobody resolved, and credits past their date.

Each account is dealt with in a transaction of its own, so that no reader waits for another one's.
Every function may be called at any time and by two at once, and leaves to the next call what it
has no time for.
"""

from __future__ import annotations

import logging
import time
from datetime import datetime, timedelta
from functools import partial
from itertools import groupby
from smtplib import SMTPException
from typing import Any
from uuid import UUID

from django.conf import settings
from django.core.mail import send_mail
from django.db.models import Exists, F, OuterRef, QuerySet
from django.template.loader import render_to_string
from django.urls import reverse

from billing import credits
from billing.ledger import postings
from billing.models import Account, CreditLot, ExpiryNotice, Hold
from chatproject.lib.db import MoneyBusy, money_transaction

logger = logging.getLogger(__name__)

BATCH = 100  # rows per query
SECONDS = 60.0  # of one call

# Days before credits expire on which their owner is told.
NOTICES = (14, 3)


def release_holds(now: datetime) -> int:
    """Release holds past their end; returns how many.

    There should be none: chat's sweeper settles what a dead worker left long before, and long runs
    extend their hold. So each one is worth a warning.
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
    # Locked by somebody: they are settling or extending it at this moment.
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
    """Take credits past their date; returns in how many accounts something was taken."""
    deadline = time.monotonic() + SECONDS
    taken = last = 0
    # What is held is never taken, so that an account that is held in full has nothing to give.
    due = Account.objects.filter(next_expiry_at__lte=now, balance__gt=F("held")).order_by("pk")
    while time.monotonic() < deadline:
        batch = list(due.filter(pk__gt=last).values_list("pk", flat=True)[:BATCH])
        if not batch:
            break
        last = batch[-1]
        for account_id in batch:
            taken += _attempt(partial(_expire, account_id), f"account {account_id}")
    return taken


def _expire(account_id: int) -> bool:
    return postings.expire(account_id=account_id) > 0


def _attempt(fn: partial[bool], what: str) -> bool:
    """Run one transaction; one that is in others' way waits for the next call."""
    try:
        return money_transaction(fn)
    except MoneyBusy as error:
        logger.warning("%s waits for the next turn: %s", what, error)
        return False


def tell(now: datetime) -> int:
    """Mail owners of credits that expire soon, once per lot and number of days; returns how many.

    Not of a plan's monthly credits, which are replaced as they go, and not of credits that were
    given for so few days anyway.
    """
    deadline = time.monotonic() + SECONDS
    told = 0
    for days in sorted(NOTICES):
        lots = _untold(now, days).order_by("account_id", "expires_at", "pk")
        for _, group in groupby(list(lots[: BATCH * 10]), key=lambda lot: lot.account_id):
            if time.monotonic() > deadline:
                return told
            told += _tell(list(group), days)
    return told


def _untold(now: datetime, days: int) -> QuerySet[CreditLot]:
    # Who was told of three days need not be told of fourteen.
    known = ExpiryNotice.objects.filter(lot=OuterRef("pk"), days__lte=days)
    return (
        CreditLot.objects.filter(
            remaining__gt=0,
            expires_at__gt=now,
            expires_at__lte=now + timedelta(days=days),
            effective_at__lt=F("expires_at") - timedelta(days=days),
            account__status=Account.Status.ACTIVE,
            account__user__is_active=True,
        )
        .exclude(Exists(known))
        .exclude(source_key__startswith="allowance:")
        .select_related("account__user")
    )


def _tell(lots: list[CreditLot], days: int) -> bool:
    # Noted first: a mail that was sent and not noted would be sent every five minutes.
    ours = [lot for lot in lots if _note(lot, days)]
    if not ours:
        return False
    user: Any = ours[0].account.user
    context = {
        "amount": credits.show(sum(lot.remaining for lot in ours)),
        "days": days,
        "lots": [(credits.show(lot.remaining), lot.expires_at) for lot in ours],
        "link": f"{settings.SITE_URL}{reverse('billing:overview')}" if settings.SITE_URL else "",
        "site_name": settings.SITE_NAME,
    }
    subject = render_to_string("billing/email/credits_expire_subject.txt", context).strip()
    try:
        send_mail(
            subject,
            render_to_string("billing/email/credits_expire_message.txt", context),
            None,
            [user.email],
        )
    except (SMTPException, OSError) as error:
        ExpiryNotice.objects.filter(lot__in=ours, days=days).delete()
        logger.warning("account %d was not told of expiry: %s", ours[0].account_id, error)
        return False
    return True


def _note(lot: CreditLot, days: int) -> bool:
    """Note that the owner is told, unless somebody else notes it now."""
    return ExpiryNotice.objects.get_or_create(lot=lot, days=days)[1]
