"""Limits on spending: users set their own, staff set them for one account or for everybody.

Also the number of messages a month that a plan allows. All are checked with every hold, exactly:
what concurrent runs have reserved counts as spent, and the account's lock keeps them in order.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from django.db.models import Q, Sum

from billing.credits import show
from billing.metering import usage
from billing.models import Account, Hold, Plan, SpendingLimit, UsageRecord
from chatproject.lib import db, rows

Period = SpendingLimit.Period
SetBy = SpendingLimit.SetBy

MESSAGES = "messages"  # stands where a limit's period does, for the messages a month of a plan


class LimitReached(Exception):
    """A limit forbids a hold; nothing was written.

    `message` is for the user. `limit` and `used` (without the hold that was refused) are
    micro-credits, or messages when `period` is MESSAGES.
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
        """Limits of the same scope share their sum."""
        return f"{self.period}_{'model' if self.model else 'all'}"


def enforce(
    *, account_id: int, user_id: int, model: str, conversation: UUID | None, amount: int
) -> None:
    """Raise LimitReached if a hold of so many micro-credits would pass one of the account's limits.

    Call it inside `lib.db.money_transaction`, right before `ledger.hold`. When nothing limits the
    account (ANY says so beforehand), that is one query and no lock; otherwise the account's row is
    locked until the COMMIT, so that of two runs at once the second sees the hold of the first.
    """
    if not db.in_money_transaction():
        raise RuntimeError("limits are enforced inside lib.db.money_transaction only")
    found = _limits(account_id, model, conversation)
    if not found:
        return
    account = Account.objects.select_for_update(no_key=True).get(pk=account_id)
    # From here on: the holds and records of this account only change under the lock that we have.
    limits = [limit for limit in found if limit.period != MESSAGES]
    if limits:
        _enforce_amounts(limits, account_id, user_id, model, conversation, amount)
    for quota in found:
        if quota.period == MESSAGES:
            _enforce_messages(quota.amount, account)


# All limits of `account`, which is a row of the statement that this is a part of.
OF_ACCOUNT = f"""
SELECT period, set_by, model, amount FROM billing_spendinglimit
WHERE (account_id = account.id OR account_id IS NULL) AND model IN ('', %(model)s)
UNION ALL
SELECT '{MESSAGES}', '', '', monthly_messages FROM billing_plan
WHERE monthly_messages IS NOT NULL AND id = coalesce(
  account.plan_id, (SELECT id FROM billing_plan WHERE is_default)
)
"""  # noqa: S608 # of a name alone

# Whether there is any.
ANY = f"EXISTS ({OF_ACCOUNT})"

LIMITS = f"""
SELECT found.* FROM billing_account AS account, LATERAL ({OF_ACCOUNT}) AS found
WHERE account.id = %(account)s
"""  # noqa: S608 # of names alone


def _limits(account_id: int, model: str, conversation: UUID | None) -> list[_Limit]:
    """All limits that a run is under, the plan's number of messages among them."""
    values = {"account": account_id, "model": model}
    found = [_Limit(*row) for row in rows.all(LIMITS, values)]
    if conversation is None:
        found = [limit for limit in found if limit.period != Period.CONVERSATION]
    return sorted(found, key=lambda limit: (limit.amount, limit.period))


def _enforce_amounts(
    limits: list[_Limit],
    account_id: int,
    user_id: int,
    model: str,
    conversation: UUID | None,
    amount: int,
) -> None:
    spent = _spent(limits, user_id, model, conversation)
    reserved = _reserved(limits, account_id, model, conversation)
    for limit in limits:
        used = spent[limit.column] + reserved[limit.column]
        if used + amount > limit.amount:
            raise LimitReached(
                _sentence(limit, used, amount), limit=limit.amount, used=used, period=limit.period
            )


def _spent(
    limits: Iterable[_Limit], user_id: int, model: str, conversation: UUID | None
) -> dict[str, int]:
    """What was charged in the scope of each limit, by its `column`; one query."""
    starts = {Period.DAY.value: _day_start(), Period.MONTH.value: _month_start()}
    scopes: dict[str, Q] = {}
    reach = Q()
    for limit in limits:
        if limit.period == Period.CONVERSATION:
            within = Q(conversation=conversation)
        else:
            within = Q(created_at__gte=starts[limit.period])
        reach |= within
        scopes[limit.column] = within & _of_model(limit, model)
    records = UsageRecord.objects.filter(reach, user_id=user_id)
    return records.aggregate(**_sums("charged", scopes))


def _reserved(
    limits: Iterable[_Limit], account_id: int, model: str, conversation: UUID | None
) -> dict[str, int]:
    """What active holds set aside in the scope of each limit, by its `column`; one query."""
    scopes: dict[str, Q] = {}
    for limit in limits:
        within = Q(conversation=conversation) if limit.period == Period.CONVERSATION else Q()
        # Never empty: a condition is needed to sum by.
        scopes[limit.column] = Q(amount__gt=0) & within & _of_model(limit, model)
    holds = Hold.objects.filter(account_id=account_id, status=Hold.Status.ACTIVE)
    return holds.aggregate(**_sums("amount", scopes))


def _of_model(limit: _Limit, model: str) -> Q:
    return Q(model=model) if limit.model else Q()


def _sums(field: str, scopes: dict[str, Q]) -> dict[str, Sum]:
    return {column: Sum(field, filter=scope, default=0) for column, scope in scopes.items()}


def _day_start() -> datetime:
    return usage.start_of(usage.today())


def _month_start() -> datetime:
    return usage.start_of(usage.today().replace(day=1))


def _sentence(limit: _Limit, used: int, amount: int) -> str:
    by_user = limit.set_by == SetBy.USER
    span = {Period.DAY: "a day", Period.MONTH: "a month", Period.CONVERSATION: "for one chat"}
    later = {
        Period.DAY: "wait until tomorrow",
        Period.MONTH: "wait until next month",
        Period.CONVERSATION: "begin a new chat",
    }
    period = Period(limit.period)
    who = "You have" if by_user else "The staff have"
    of_model = f" with {limit.model}" if limit.model else ""
    first = f"{who} set a limit of {show(limit.amount)} credits {span[period]}{of_model};"
    if amount > limit.amount:
        way_out = "raise the limit" if by_user else "ask the staff to raise it"
        other = "" if limit.model else " or choose a cheaper model"
        return (
            f"{first} this message alone may cost up to {show(amount)}. {_upper(way_out)}{other}."
        )
    way_out = "raise the limit" if by_user else "ask the staff"
    return (
        f"{first} {show(used)} are used or reserved, and this message may cost up to"
        f" {show(amount)}. {_upper(way_out)} or {later[period]}."
    )


def _upper(sentence: str) -> str:
    return sentence[0].upper() + sentence[1:]


def _enforce_messages(quota: int, account: Account) -> None:
    used = _messages(account)
    if used >= quota:
        raise LimitReached(
            f"Your plan has {quota:,} messages a month, and all are used. Wait until next month or"
            " ask the staff for another plan.",
            limit=quota,
            used=used,
            period=MESSAGES,
        )


def _messages(account: Account) -> int:
    """How many messages count for this month."""
    start = _month_start()
    if account.messages_from is not None:
        start = max(start, account.messages_from)
    holds = Hold.objects.filter(account=account, created_at__gte=start, key__startswith="run:")
    return holds.exclude(status=Hold.Status.RELEASED).count()


@dataclass(frozen=True, slots=True)
class Quota:
    """The messages a month that a plan allows, and how many of them are used."""

    limit: int
    used: int


def quota(account: Account) -> Quota | None:
    """An account's number of messages a month; None when its plan has none."""
    plan = account.plan or Plan.objects.filter(is_default=True).first()
    if plan is None or plan.monthly_messages is None:
        return None
    return Quota(plan.monthly_messages, _messages(account))


def of_staff(account_id: int) -> list[SpendingLimit]:
    """The limits that staff have set for an account, or for everybody."""
    return list(
        SpendingLimit.objects.filter(
            Q(account_id=account_id) | Q(account=None), set_by=SetBy.STAFF
        ).order_by("period", "model", "amount")
    )


def own(account_id: int) -> list[SpendingLimit]:
    """The limits that the user has set, one per period at most."""
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
    if amount is None:
        SpendingLimit.objects.filter(
            account_id=account_id, set_by=SetBy.USER, period=period, model=""
        ).delete()
    else:
        SpendingLimit.objects.update_or_create(
            account_id=account_id,
            set_by=SetBy.USER,
            period=period,
            model="",
            defaults={"amount": amount},
        )
