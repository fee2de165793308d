"""What billing does by the clock.

The clock runs its tasks one after the other, so everything that may take longer than a moment goes
to a job of the queue "billing"; a task whose job waits there is not put into it a second time.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial
from typing import NamedTuple

from django.conf import settings
from django.utils import timezone

from billing import queue
from billing.ledger import allowances, audit, expiry
from billing.metering import usage
from billing.models import Account, LedgerCheck, Order
from billing.payments import mail, poller
from billing.reports import low_balance_mail

NIGHT = 3  # the hour, by the site's clock, from which the books are checked

# How old payments may be that every night are compared with the provider's: older ones are final
# but for refunds and disputes, of which webhooks tell.
COMPARED = timedelta(days=3)

# Longer than the pause between two looks at balances, so that no change is missed.
RECENT = timedelta(minutes=15)


class Scheduled(NamedTuple):
    """A name, every how many seconds it is due, and what the clock calls with the time."""

    name: str
    every: float
    run: Callable[[datetime], None]


def tasks() -> list[Scheduled]:
    """Everything of billing that happens by the clock."""
    return [
        Scheduled("poll payments", 30, poller.poll),
        *(
            Scheduled(name, every, partial(_enqueue, name))
            for name, every in (
                ("expire holds", 300),
                ("expire credits", 300),
                ("tell of expiry", 3600),
                ("monthly credits", 300),
                ("roll up usage", 3600),
                ("tell of low balances", 300),
            )
        ),
        Scheduled("nightly check", 600, _check_at_night),
    ]


def _enqueue(name: str, now: datetime) -> None:
    queue.enqueue_task(name)


def _check_at_night(now: datetime) -> None:
    """Have the books checked once a night, or at the next turn when the night was missed."""
    newest = LedgerCheck.objects.filter(is_full=True).first()
    night = timezone.localtime(now).replace(hour=NIGHT, minute=0, second=0, microsecond=0)
    if night > now:
        night -= timedelta(days=1)
    if newest is None or newest.started_at < night:
        queue.enqueue_task("nightly check")


def run(name: str) -> None:
    """Do a task now; called by its job. Raises KeyError for a name that is no task."""
    JOBS[name](timezone.now())


def _expire_holds(now: datetime) -> None:
    expiry.release_holds(now)


def _expire_credits(now: datetime) -> None:
    expiry.expire_lots(now)


def _tell_of_expiry(now: datetime) -> None:
    expiry.tell(now)


def _grant_month(now: datetime) -> None:
    allowances.grant_month(now)


def _tell_of_low_balances(now: datetime) -> None:
    if not settings.BILLING:
        return  # everything is free
    changed = Account.objects.filter(updated_at__gte=now - RECENT, seq__gt=0).order_by("pk")
    for account_id in changed.values_list("pk", flat=True).iterator():
        low_balance_mail.tell_if_low(account_id)


def _check_all(now: datetime) -> None:
    """Check the books, then compare the latest payments with what the providers know of them."""
    _check_ledger(now)
    orders = Order.objects.filter(created_at__gte=now - COMPARED, provider_order_id__isnull=False)
    for order_id in orders.order_by("pk").values_list("pk", flat=True).iterator():
        queue.enqueue_sync(order_id)


def _check_ledger(now: datetime) -> None:
    """Check all the books, freeze accounts that are wrong, and call staff."""
    check = audit.run_and_store()
    if not check.problems:
        return
    problems = [audit.Problem(**problem) for problem in check.problems]
    frozen = audit.freeze(problems)
    mail.alert(
        "The books are wrong",
        "\n".join(
            [
                f"{len(problems)} problems were found, and frozen were the accounts"
                f" {', '.join(map(str, frozen)) or '(none)'}. See docs/operations.md.",
                *(f"{one.code}, {one.where}: {one.message}" for one in problems[:50]),
            ]
        ),
    )


JOBS: dict[str, Callable[[datetime], None]] = {
    "expire holds": _expire_holds,
    "expire credits": _expire_credits,
    "tell of expiry": _tell_of_expiry,
    "monthly credits": _grant_month,
    "roll up usage": usage.roll_up,
    "tell of low balances": _tell_of_low_balances,
    "check ledger": _check_ledger,
    "nightly check": _check_all,
}
