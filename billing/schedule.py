"""Billing's scheduled tasks.

The clock runs its tasks one after the other, so anything that may take longer than a moment becomes a
job of the queue "billing". A task whose job is still queued or running is not enqueued again.

Redis stores the names of tasks: a renamed one must keep its old name for one release.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import NamedTuple
from uuid import UUID

from django.conf import settings
from django.utils import timezone

from billing import queue
from billing.ledger import allowances, audit, expiry, plans
from billing.metering import usage
from billing.models import Account, LedgerCheck, Order
from billing.payments import mail, poller
from billing.reports import low_balance_mail
from chatproject.lib.batches import apart

NIGHT = 3  # the hour, by the site's time zone, from which the ledger is checked

# Orders up to this age are compared with the provider every night. Older ones are final, except for
# refunds and disputes, which webhooks report.
COMPARED = timedelta(days=3)

# Longer than the time between two checks of low balances, so that no change is missed.
RECENT = timedelta(minutes=15)


class Scheduled(NamedTuple):
    """A task's name, its interval in seconds, and the function that the clock calls with the time."""

    name: str
    every: float
    run: Callable[[datetime], None]


def tasks() -> list[Scheduled]:
    """Return all scheduled tasks of billing."""

    def job(name: str, every: float) -> Scheduled:
        return Scheduled(name, every, lambda now: queue.enqueue_task(name))

    return [
        Scheduled("poll payments", 30, poller.poll),
        job("expire holds", 300),
        job("expire credits", 300),
        job("tell of expiry", 3600),
        job("end memberships", 60),
        job("follow plans", 300),
        job("monthly credits", 300),
        job("roll up usage", 3600),
        job("tell of low balances", 300),
        Scheduled("nightly check", 600, enqueue_nightly_check),
    ]


def enqueue_nightly_check(now: datetime) -> None:
    """Enqueue the full check once a night, or as soon as possible if the night was missed."""
    newest = LedgerCheck.objects.filter(is_full=True).first()
    night = timezone.localtime(now).replace(hour=NIGHT, minute=0, second=0, microsecond=0)
    if night > now:
        night -= timedelta(days=1)
    if newest is None or newest.started_at < night:
        queue.enqueue_task("nightly check")


def run(name: str) -> None:
    """Run a task; called by its job. Raises KeyError for an unknown name."""
    JOBS[name](timezone.now())


def notify_low_balances(now: datetime) -> None:
    """Mail the users whose balance has lately become low."""
    if not settings.BILLING:
        return  # everything is free
    changed = Account.objects.filter(updated_at__gte=now - RECENT, seq__gt=0).order_by("pk")
    for account_id in changed.values_list("pk", flat=True).iterator():
        with apart(f"the low balance of account {account_id}"):
            low_balance_mail.notify_if_low(account_id)


def check_all(now: datetime) -> None:
    """Check the ledger, then compare the latest orders with the providers' records.

    An order whose credits do not match the money that went back is synced too, whatever its age.
    """
    check = check_ledger(now)
    for problem in check.problems:
        if problem["code"] == "order_money_back":
            queue.enqueue_sync(UUID(problem["where"].removeprefix("order ")))
    orders = Order.objects.filter(created_at__gte=now - COMPARED, provider_order_id__isnull=False)
    for order_id in orders.order_by("pk").values_list("pk", flat=True).iterator():
        queue.enqueue_sync(order_id)


def check_ledger(now: datetime) -> LedgerCheck:
    """Check the whole ledger; on problems, freeze the accounts concerned and alert staff."""
    check = audit.run_and_store()
    if not check.problems:
        return check
    problems = [audit.Problem(**problem) for problem in check.problems]
    frozen = audit.freeze(problems)
    mail.alert(
        "The ledger is inconsistent",
        "\n".join(
            [
                f"{len(problems)} problems were found. Frozen accounts:"
                f" {', '.join(map(str, frozen)) or 'none'}. See docs/operations/money.md.",
                *(f"{one.code}, {one.where}: {one.message}" for one in problems[:50]),
            ]
        ),
    )
    return check


JOBS: dict[str, Callable[[datetime], object]] = {
    "expire holds": expiry.release_holds,
    "expire credits": expiry.expire_lots,
    "tell of expiry": expiry.notify,
    "end memberships": plans.end_due,
    "follow plans": plans.follow_groups,
    "monthly credits": allowances.grant_month,
    "roll up usage": usage.roll_up,
    "tell of low balances": notify_low_balances,
    "check ledger": check_ledger,
    "nightly check": check_all,
}
