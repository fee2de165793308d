"""Spending limits, set by users for themselves and by staff for one account or all, and message quotas.

A quota is the number of messages a month that a plan allows. Both are enforced exactly with every
hold: credits reserved by concurrent runs count as spent, and the account's lock serializes the checks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeAlias
from uuid import UUID

from django.conf import settings
from django.db.models import Count, Q, Sum
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from billing.credits import show
from billing.metering import usage
from billing.models import Account, Hold, Plan, SpendingLimit, UsageRecord
from billing.models.usage import Purpose
from chatproject.lib import db, languages
from chatproject.lib.db import prepared

Period = SpendingLimit.Period
SetBy = SpendingLimit.SetBy

MESSAGES = "messages"  # in place of a limit's period: the messages a month of a plan


class LimitReached(Exception):
    """A limit forbids a hold; nothing was written.

    `message` is for the user. `limit` and `used` (without the refused hold) are micro-credits, or
    messages when `period` is MESSAGES.
    """

    def __init__(self, message: str, *, limit: int, used: int, period: str) -> None:
        self.message = message
        self.limit = limit
        self.used = used
        self.period = period
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class _Limit:
    period: str
    set_by: str
    model: str
    amount: int

    @property
    def column(self) -> str:
        """The name of the limit's sum, which all limits of the same scope share."""
        return f"{self.period}_{'model' if self.model else 'all'}"


# Counts a user's other active runs without a hold that were queued since a time.
CountUnheld: TypeAlias = Callable[[datetime], int]


def no_unheld_runs(since: datetime) -> int:
    """Count no runs, for callers that run nothing without a hold."""
    return 0


def enforce(
    *,
    account_id: int,
    user_id: int,
    model: str,
    conversation: UUID | None,
    amount: int,
    count_unheld: CountUnheld | None = no_unheld_runs,
) -> None:
    """Raise LimitReached if a hold of `amount` micro-credits would exceed a limit of the account.

    `count_unheld` is called under the account's lock, for the quota of messages; with None the call is no message,
    and has no quota. Call it inside `lib.db.money_transaction`, right before `postings.hold`. Without any limit (see
    ANY) it costs one query and takes no lock. Otherwise the account's row is locked until the
    COMMIT, so that the second of two concurrent runs sees the hold of the first.
    """
    if not db.in_money_transaction():
        raise RuntimeError("limits are enforced inside lib.db.money_transaction only")
    found = [_Limit(*row) for row in prepared.all(LIMITS, {"account": account_id, "model": model})]
    if conversation is None:
        found = [limit for limit in found if limit.period != Period.CONVERSATION]
    if not found:
        return
    account = Account.objects.select_for_update(no_key=True).get(pk=account_id)
    # From here on, holds and records of this account only change under the lock that we own.
    found.sort(key=lambda limit: (limit.amount, limit.period))
    limits = [limit for limit in found if limit.period != MESSAGES]
    used = _used(limits, account, user_id, model, conversation) if limits else {}
    for limit in limits:
        if used[limit.column] + amount > limit.amount:
            raise LimitReached(
                _sentence(limit, used[limit.column], amount),
                limit=limit.amount,
                used=used[limit.column],
                period=limit.period,
            )
    for quota in found:
        if quota.period != MESSAGES or count_unheld is None:
            continue
        sent = messages_this_month(account) + count_unheld(_messages_since(account))
        if sent >= quota.amount:
            raise LimitReached(
                ngettext(
                    "Your plan has %(amount)s message a month, and all are used. Wait until next month or ask the staff for another plan.",
                    "Your plan has %(amount)s messages a month, and all are used. Wait until next month or ask the staff for another plan.",
                    quota.amount,
                )
                % {"amount": languages.number(quota.amount)},
                limit=quota.amount,
                used=sent,
                period=MESSAGES,
            )


# All limits of `account`, which is a row of the enclosing statement.
OF_ACCOUNT = f"""
SELECT period, set_by, model, amount FROM billing_spendinglimit
WHERE (account_id = account.id OR account_id IS NULL) AND model IN ('', %(model)s)
UNION ALL
SELECT '{MESSAGES}', '', '', monthly_messages FROM billing_plan
WHERE monthly_messages IS NOT NULL AND id = coalesce(
  account.plan_id, (SELECT id FROM billing_plan WHERE is_default)
)
"""  # noqa: S608 # of a name alone

# Whether the account has any limit.
ANY = f"EXISTS ({OF_ACCOUNT})"

LIMITS = f"""
SELECT found.* FROM billing_account AS account, LATERAL ({OF_ACCOUNT}) AS found
WHERE account.id = %(account)s
"""  # noqa: S608 # of names alone


def _used(
    limits: Iterable[_Limit], account: Account, user_id: int, model: str, conversation: UUID | None
) -> dict[str, int]:
    """Return the micro-credits charged and held in each limit's scope, by `column`; two queries."""
    today = usage.today()
    starts = {
        Period.DAY.value: usage.start_of(today),
        Period.MONTH.value: usage.start_of(today.replace(day=1)),
    }
    charged: dict[str, Sum] = {}
    held: dict[str, Sum] = {}
    reach = Q()
    for limit in limits:
        of_model = Q(model=model) if limit.model else Q()
        if limit.period == Period.CONVERSATION:
            recorded = active = Q(conversation=conversation)
        else:
            recorded = Q(created_at__gte=starts[limit.period])
            active = Q(amount__gt=0)  # true of all holds: a sum's filter must not be empty
        reach |= recorded
        charged[limit.column] = Sum("charged", filter=recorded & of_model, default=0)
        held[limit.column] = Sum("amount", filter=active & of_model, default=0)
    spent = UsageRecord.objects.filter(reach, user_id=user_id).aggregate(**charged)
    holds = Hold.objects.filter(account=account, status=Hold.Status.ACTIVE).aggregate(**held)
    return {column: spent[column] + holds[column] for column in spent}


# The first sentence of a refusal, by the setter of the limit and its period.
LIMITS_SET = {
    (True, Period.DAY): gettext_lazy("You have set a limit of %(limit)s credits a day%(model)s;"),
    (True, Period.MONTH): gettext_lazy(
        "You have set a limit of %(limit)s credits a month%(model)s;"
    ),
    (True, Period.CONVERSATION): gettext_lazy(
        "You have set a limit of %(limit)s credits for one chat%(model)s;"
    ),
    (False, Period.DAY): gettext_lazy(
        "The staff have set a limit of %(limit)s credits a day%(model)s;"
    ),
    (False, Period.MONTH): gettext_lazy(
        "The staff have set a limit of %(limit)s credits a month%(model)s;"
    ),
    (False, Period.CONVERSATION): gettext_lazy(
        "The staff have set a limit of %(limit)s credits for one chat%(model)s;"
    ),
}
WAYS_OUT = {
    (True, Period.DAY): gettext_lazy("Raise the limit or wait until tomorrow."),
    (True, Period.MONTH): gettext_lazy("Raise the limit or wait until next month."),
    (True, Period.CONVERSATION): gettext_lazy("Raise the limit or start a new chat."),
    (False, Period.DAY): gettext_lazy("Ask the staff or wait until tomorrow."),
    (False, Period.MONTH): gettext_lazy("Ask the staff or wait until next month."),
    (False, Period.CONVERSATION): gettext_lazy("Ask the staff or start a new chat."),
}


def _sentence(limit: _Limit, used: int, amount: int) -> str:
    by_user = limit.set_by == SetBy.USER
    key = by_user, Period(limit.period)
    of_model = _(" with %(model)s") % {"model": limit.model} if limit.model else ""
    first = LIMITS_SET[key] % {"limit": show(limit.amount), "model": of_model}
    if amount > limit.amount:
        cost = _("this message alone may cost up to %(amount)s.") % {"amount": show(amount)}
        if by_user:
            way_out = _("Raise the limit, or send less.")
        else:
            way_out = _("Ask the staff to raise it, or send less.")
    else:
        cost = _("%(used)s are used or reserved, and this message may cost up to %(amount)s.") % {
            "used": show(used),
            "amount": show(amount),
        }
        way_out = str(WAYS_OUT[key])
    return f"{first} {cost} {way_out}"


def messages_this_month(account: Account) -> int:
    """Return the number of messages that count for this month's quota.

    A message that costs credits counts by its hold, from the moment of sending unless nothing was
    charged. A message to a free model, or of a user who pays nothing, counts by its usage record,
    under the same rule; while its reply is made, only `enforce` counts it.
    """
    since = _messages_since(account)
    holds = Hold.objects.filter(account=account, created_at__gte=since, key__startswith="run:")
    free = UsageRecord.objects.filter(
        user_id=account.user_id,
        created_at__gte=since,
        hold=None,
        purpose=Purpose.CHAT,
        finish__in=[
            UsageRecord.Finish.COMPLETE,
            UsageRecord.Finish.STOPPED,
            *([UsageRecord.Finish.FAILED] if settings.BILL_FAILED_PARTIAL else []),
        ],
    )
    unpaid: int = free.aggregate(runs=Count("run_id", distinct=True))["runs"]
    return holds.exclude(status=Hold.Status.RELEASED).count() + unpaid


def _messages_since(account: Account) -> datetime:
    """Return the time from which an account's messages count: the month's begin or the last reset."""
    start = usage.start_of(usage.today().replace(day=1))
    return start if account.messages_from is None else max(start, account.messages_from)


@dataclass(frozen=True, slots=True)
class Quota:
    """The messages a month that a plan allows, and the number used of them."""

    limit: int
    used: int


def quota(account: Account) -> Quota | None:
    """Return an account's quota of messages a month; None if its plan has none."""
    plan = account.plan or Plan.objects.filter(is_default=True).first()
    if plan is None or plan.monthly_messages is None:
        return None
    return Quota(plan.monthly_messages, messages_this_month(account))


def of_staff(account_id: int) -> list[SpendingLimit]:
    """Return the limits that staff have set for an account or for all accounts."""
    return list(
        SpendingLimit.objects.filter(
            Q(account_id=account_id) | Q(account=None), set_by=SetBy.STAFF
        ).order_by("period", "model", "amount")
    )


def own(account_id: int) -> list[SpendingLimit]:
    """Return the limits that the user has set, at most one per period."""
    return list(
        SpendingLimit.objects.filter(account_id=account_id, set_by=SetBy.USER, model="").order_by(
            "period"
        )
    )


def set_own(*, account_id: int, period: SpendingLimit.Period, amount: int | None) -> None:
    """Set the user's own limit of a period in micro-credits; None removes it.

    Raises ValueError for a negative amount.
    """
    if amount is not None and amount < 0:
        raise ValueError("a limit is not negative")
    scope: dict[str, Any] = {
        "account_id": account_id,
        "set_by": SetBy.USER,
        "period": period,
        "model": "",
    }
    if amount is None:
        SpendingLimit.objects.filter(**scope).delete()
    else:
        SpendingLimit.objects.update_or_create(**scope, defaults={"amount": amount})
