"""Monthly allowances: the credits that a plan grants to its accounts.

The entry's idempotency key grants them once per month and account; they expire when the month ends
by the site's time zone. The first grant of a month counts: a plan that is changed in mid-month grants its
credits from the next month on, or at once if the month has brought the account none. Credits that were granted
stay until the month ends, whatever becomes of the plan.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime
from functools import partial

from django.db.models import CharField, Exists, OuterRef, Q, Value
from django.db.models.functions import Cast, Concat
from django.utils import timezone

from billing.ledger import plans, postings
from billing.models import Account, LedgerEntry, Membership, Plan
from chatproject.lib.batches import apart
from chatproject.lib.db import money_transaction

BATCH = 200  # accounts per query
SECONDS = 60.0  # time limit of one call; the next call continues


def grant_month(now: datetime) -> int:
    """Grant all accounts their plan's credits for this month; return how many got some.

    May be called at any time and concurrently. Frozen accounts, and those of
    inactive users, are skipped until they are active. Memberships that are due end first.
    """
    plans.end_due(now)
    month, ends_at = month_of(now)
    deadline = time.monotonic() + SECONDS
    granted = last = 0
    while batch := _accounts_without(month, now, after=last):
        last = batch[-1]
        for account_id in batch:
            if time.monotonic() > deadline:
                return granted
            # The next call finds it again; the other accounts need not wait for it.
            with apart(f"the allowance of account {account_id}"):
                granted += money_transaction(partial(_grant, account_id, month, ends_at))
    return granted


def grant_joined(account_id: int, now: datetime) -> None:
    """Grant an account that has just joined a plan its credits of this month. Call it inside a money transaction."""
    _grant(account_id, *month_of(now))


def month_of(now: datetime) -> tuple[str, datetime]:
    """Return the name of a time's month by the site's time zone, and the begin of the next one."""
    local = timezone.localtime(now)
    year, index = divmod(local.year * 12 + local.month, 12)
    ends_at = local.replace(
        year=year, month=index + 1, day=1, hour=0, minute=0, second=0, microsecond=0
    )
    return f"{local:%Y-%m}", ends_at


def key_of(account_id: int, month: str) -> str:
    """Return the key under which an account's credits of a month are granted."""
    return f"allowance:{account_id}:{month}"


def _accounts_without(month: str, now: datetime, *, after: int) -> list[int]:
    """Return the ids of the next accounts that have not got their plan's credits of a month."""
    key = Concat(Value("allowance:"), Cast(OuterRef("pk"), CharField()), Value(f":{month}"))
    due = Q(plan__monthly_credits__gt=0)
    if Plan.objects.filter(is_default=True, monthly_credits__gt=0).exists():
        due |= Q(plan=None)
    over = Membership.objects.filter(account=OuterRef("pk"), ended_at=None, until__lte=now)
    return list(
        Account.objects.filter(
            due, ~Exists(over), pk__gt=after, status=Account.Status.ACTIVE, user__is_active=True
        )
        .exclude(Exists(LedgerEntry.objects.filter(idempotency_key=key)))
        .order_by("pk")
        .values_list("pk", flat=True)[:BATCH]
    )


def _grant(account_id: int, month: str, ends_at: datetime) -> bool:
    account = Account.objects.select_related("plan").get(pk=account_id)
    plan = plans.plan_of(account)
    if plan is None or plan.monthly_credits == 0:
        return False
    try:
        return postings.grant(
            account_id=account_id,
            amount=plan.monthly_credits,
            key=key_of(account_id, month),
            expires_at=ends_at,
            note=f"{plan.name}, {month}",
        ).is_new
    except postings.KeyReused:
        # A concurrent call granted another amount: the plan was changed in between.
        return False


@dataclass(frozen=True, slots=True)
class NextGrant:
    """The next monthly credits of an account, in micro-credits; without a time they come within minutes."""

    amount: int
    at: datetime | None


def next_grant(account: Account, now: datetime) -> NextGrant | None:
    """Return the next monthly credits of an account; None if there are none, by its plan of then."""
    month, ends_at = month_of(now)
    plan, present = plans.plan_of(account), plans.membership_of(account)
    is_due = account.status == Account.Status.ACTIVE and plan is not None and plan.monthly_credits
    if (
        is_due
        and not LedgerEntry.objects.filter(idempotency_key=key_of(account.pk, month)).exists()
    ):
        assert plan is not None
        return NextGrant(plan.monthly_credits, None)
    if present is not None and present.until is not None and present.until <= ends_at:
        plan = Plan.objects.filter(is_default=True).first()
    if plan is None or not plan.monthly_credits:
        return None
    return NextGrant(plan.monthly_credits, ends_at)
