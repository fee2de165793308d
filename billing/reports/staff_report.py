"""The staff report: the money flows of a month, and the present state of accounts and payments.

Each part is one set-based query; the usage comes from the sums by day.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from typing import Any

from django.db.models import Count, DecimalField, F, Min, Q, QuerySet, Sum
from django.db.models.functions import Cast, Floor, TruncMonth
from django.utils import timezone

from billing.models import (
    Account,
    CreditLot,
    Dispute,
    Hold,
    LedgerCheck,
    LedgerEntry,
    Order,
    ProviderEvent,
    Refund,
)
from billing.payments import packages
from billing.reports import usage_report
from billing.reports.usage_report import ModelRow, Sums

MONTHS = 12  # of revenue, up to the month of the report


@dataclass(frozen=True, slots=True)
class Revenue:
    """Money of one month and currency, in minor units; `kept` is the rest after all returns."""

    month: date
    currency: str
    orders: int
    paid: int
    refunded: int
    disputed: int

    @property
    def kept(self) -> int:
        return self.paid - self.refunded - self.disputed


@dataclass(frozen=True, slots=True)
class Liability:
    """Unspent credits of one kind; `worth` is the price paid for them, in minor units."""

    kind: str
    currency: str
    credits: int
    worth: int


@dataclass(frozen=True, slots=True)
class Loss:
    """Money that went back beyond the price of orders, in minor units of a currency."""

    currency: str
    orders: int
    amount_minor: int


@dataclass(frozen=True, slots=True)
class Holds:
    """Active holds; the `overdue` ones are past their end and should have been resolved."""

    count: int
    amount: int
    oldest: datetime | None
    overdue: int


@dataclass(frozen=True, slots=True)
class CounterAccount:
    """The system's side of the ledger: credits received in the month, and in total."""

    name: str
    month: int
    total: int


@dataclass(frozen=True, slots=True)
class StaffReport:
    """All figures of the page. Credits are micro-credits."""

    month: date
    revenue: list[Revenue]
    losses: list[Loss]
    liabilities: list[Liability]
    balance: int
    debt: int
    models: list[ModelRow]
    spent: Sums
    holds: Holds
    orders_in_review: int
    events_in_review: int
    events_failed: int
    refunds_open: int
    disputes_open: int
    last_check: LedgerCheck | None
    counter_accounts: list[CounterAccount]

    @property
    def shortfall_share(self) -> float:
        """The uncollected share of the cost of usage, in per cent."""
        return 100 * self.spent.shortfall / self.spent.cost if self.spent.cost else 0.0


def month_of(text: str) -> date:
    """Return the first day of a month like `2026-11`, or of this month for any other text."""
    try:
        return datetime.strptime(text, "%Y-%m").date()  # noqa: DTZ007 # a month has no zone
    except ValueError:
        return timezone.localdate().replace(day=1)


def later(month: date, months: int) -> date:
    """Return the first day of the month `months` later; a negative number goes back."""
    year, index = divmod(month.year * 12 + month.month - 1 + months, 12)
    return date(year, index + 1, 1)


def make(month: date) -> StaffReport:
    """Make the report of a month, given by its first day."""
    models = usage_report.by_model(month, later(month, 1) - timedelta(days=1))
    totals = Account.objects.aggregate(balance=Sum("balance"), debt=Sum("debt"))
    events = ProviderEvent.objects.exclude(
        status__in=[ProviderEvent.Status.PROCESSED, ProviderEvent.Status.IGNORED]
    ).aggregate(
        review=Count("pk", filter=Q(status=ProviderEvent.Status.REVIEW)),
        failed=Count("pk", filter=Q(status=ProviderEvent.Status.FAILED)),
    )
    return StaffReport(
        month=month,
        revenue=revenue(month),
        losses=losses(),
        liabilities=liabilities(),
        balance=totals["balance"] or 0,
        debt=totals["debt"] or 0,
        models=models,
        spent=sum((row.sums for row in models), Sums()),
        holds=active_holds(),
        orders_in_review=Order.objects.filter(packages.in_review()).count(),
        events_in_review=events["review"],
        events_failed=events["failed"],
        refunds_open=Refund.objects.filter(status__in=Refund.OPEN).count(),
        disputes_open=Dispute.objects.filter(status=Dispute.Status.OPEN).count(),
        last_check=LedgerCheck.objects.first(),
        counter_accounts=counter_accounts(month),
    )


def revenue(month: date) -> list[Revenue]:
    """Return the revenue of the last MONTHS up to a month, the newest first."""
    span = _bounds(later(month, 1 - MONTHS), later(month, 1))
    paid = _by_month(Order.objects.filter(status__in=Order.SETTLED), "paid_at", "currency", span)
    refunds = Refund.objects.filter(status=Refund.Status.SUCCEEDED)
    refunded = _by_month(refunds, "created_at", "order__currency", span)
    disputes = Dispute.objects.filter(funds_withdrawn=True).exclude(status=Dispute.Status.WON)
    disputed = _by_month(disputes, "created_at", "order__currency", span)
    keys = sorted({*paid, *refunded, *disputed}, key=lambda key: (-key[0].toordinal(), key[1]))
    nothing = (0, 0)
    return [
        Revenue(
            month=key[0],
            currency=key[1],
            orders=paid.get(key, nothing)[0],
            paid=paid.get(key, nothing)[1],
            refunded=refunded.get(key, nothing)[1],
            disputed=disputed.get(key, nothing)[1],
        )
        for key in keys
    ]


def _bounds(first: date, end: date) -> tuple[datetime, datetime]:
    """Return the midnights of two days by the site's time zone."""
    return (
        timezone.make_aware(datetime.combine(first, time.min)),
        timezone.make_aware(datetime.combine(end, time.min)),
    )


def _by_month(
    rows: QuerySet[Any], moment: str, currency: str, span: tuple[datetime, datetime]
) -> dict[tuple[date, str], tuple[int, int]]:
    """Return the number of rows and the sum of their amounts, by month and currency."""
    found = (
        rows.filter(**{f"{moment}__gte": span[0], f"{moment}__lt": span[1]})
        .order_by()
        .values_list(TruncMonth(moment), currency)
        .annotate(count=Count("pk"), sum=Sum("amount_minor"))
    )
    return {
        (timezone.localtime(when).date(), unit): (count, int(total))
        for when, unit, count, total in found
    }


def losses() -> list[Loss]:
    """Return the money that went back beyond the price of orders, in all, by currency."""
    found = (
        Order.objects.filter(lost_minor__gt=0)
        .order_by("currency")
        .values_list("currency")
        .annotate(orders=Count("pk"), sum=Sum("lost_minor"))
    )
    return [Loss(currency, orders, int(total)) for currency, orders, total in found]


def liabilities() -> list[Liability]:
    """Return the unspent credits by kind and currency."""
    part = Cast("paid_minor", DecimalField(max_digits=40, decimal_places=10))
    found = (
        CreditLot.objects.filter(remaining__gt=0)
        .order_by()
        .values_list("kind", "currency")
        .annotate(credits=Sum("remaining"), worth=Sum(Floor(part * F("remaining") / F("granted"))))
    )
    rows = [
        Liability(kind, currency, int(credits), int(worth))
        for kind, currency, credits, worth in found
    ]
    order = list(CreditLot.Kind)
    return sorted(rows, key=lambda row: (order.index(CreditLot.Kind(row.kind)), row.currency))


def active_holds() -> Holds:
    """Return the sums of all active holds."""
    found = Hold.objects.filter(status=Hold.Status.ACTIVE).aggregate(
        count=Count("pk"),
        amount=Sum("amount"),
        oldest=Min("created_at"),
        overdue=Count("pk", filter=Q(expires_at__lte=timezone.now())),
    )
    return Holds(found["count"], found["amount"] or 0, found["oldest"], found["overdue"])


def counter_accounts(month: date) -> list[CounterAccount]:
    """Return the counter-accounts with any entry, in the order of their declaration."""
    first, end = _bounds(month, later(month, 1))
    found = {
        name: CounterAccount(name, -int(in_month or 0), -int(total))
        for name, in_month, total in LedgerEntry.objects.order_by()
        .values_list("counter_account")
        .annotate(
            in_month=Sum("amount", filter=Q(created_at__gte=first, created_at__lt=end)),
            total=Sum("amount"),
        )
    }
    return [found[name] for name in LedgerEntry.Counter.values if name in found]
