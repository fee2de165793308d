"""What a plan gives to its accounts every month.

The credits are granted once per month and account, by the key of the entry, and expire when the
month ends by the site's time zone. The first grant of a month counts: a plan that is changed in
mid-month takes effect with the next month.
"""

from __future__ import annotations

import logging
import time
from datetime import datetime
from functools import partial

from django.db.models import CharField, Exists, OuterRef, Q, Value
from django.db.models.functions import Cast, Concat
from django.utils import timezone

from billing.ledger import postings
from billing.models import Account, LedgerEntry, Plan
from chatproject.lib.db import MoneyBusy, money_transaction

logger = logging.getLogger(__name__)

BATCH = 200  # accounts per query
SECONDS = 60.0  # of one call; what is left is done by the next


def plan_of(account: Account) -> Plan | None:
    """The account's plan: its own, or the one for accounts that have none."""
    return account.plan or Plan.objects.filter(is_default=True).first()


def grant_month(now: datetime) -> int:
    """Give every account what its plan owes it for this month; returns how many got something.

    May be called at any time and by two at once. Frozen accounts wait until they are in use again.
    """
    month, ends_at = _month(now)
    deadline = time.monotonic() + SECONDS
    given = last = 0
    while batch := _without(month, after=last):
        last = batch[-1]
        for account_id in batch:
            if time.monotonic() > deadline:
                return given
            try:
                given += money_transaction(partial(_grant, account_id, month, ends_at))
            except MoneyBusy as error:
                # The next call finds it again; the others need not wait for it.
                logger.warning("account %d got no allowance yet: %s", account_id, error)
    return given


def _month(now: datetime) -> tuple[str, datetime]:
    """The month by the site's clock, as in keys, and the moment at which it ends."""
    local = timezone.localtime(now)
    year, month = divmod(local.year * 12 + local.month, 12)
    ends_at = local.replace(
        year=year, month=month + 1, day=1, hour=0, minute=0, second=0, microsecond=0
    )
    return f"{local:%Y-%m}", ends_at


def _without(month: str, *, after: int) -> list[int]:
    """The next accounts, by id, whose plan gives credits that they did not get this month."""
    key = Concat(Value("allowance:"), Cast(OuterRef("pk"), CharField()), Value(f":{month}"))
    due = Q(plan__monthly_credits__gt=0)
    if Plan.objects.filter(is_default=True, monthly_credits__gt=0).exists():
        due |= Q(plan=None)
    return list(
        Account.objects.filter(due, pk__gt=after, status=Account.Status.ACTIVE)
        .exclude(Exists(LedgerEntry.objects.filter(idempotency_key=key)))
        .order_by("pk")
        .values_list("pk", flat=True)[:BATCH]
    )


def _grant(account_id: int, month: str, ends_at: datetime) -> bool:
    account = Account.objects.select_related("plan").get(pk=account_id)
    plan = plan_of(account)
    if plan is None or plan.monthly_credits == 0:
        return False
    try:
        return postings.grant(
            account_id=account_id,
            amount=plan.monthly_credits,
            key=f"allowance:{account_id}:{month}",
            expires_at=ends_at,
            note=f"{plan.name}, {month}",
        ).is_new
    except postings.KeyReused:
        # Another call gave it a moment ago, by what the plan said then.
        return False
