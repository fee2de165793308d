"""What staff may give when they are quick, and the figures of their report."""

from __future__ import annotations

import threading
import uuid
from datetime import UTC, date, datetime, timedelta

import pytest
from django.db import connections
from django.urls import reverse
from django.utils import timezone

from accounts.models import User
from billing.ledger import postings, staff_actions
from billing.models import (
    Account,
    AuditRecord,
    DailyUsage,
    Dispute,
    LedgerCheck,
    Order,
    ProviderEvent,
    Refund,
)
from billing.models.usage import Purpose
from billing.reports import staff_report
from chatproject.lib.db import money_transaction
from tests.support import money

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("valkey_url")]

CREDIT = 1_000_000


@pytest.fixture
def boss(client) -> User:
    user = User.objects.create_superuser("boss@example.org", "correct horse battery")
    client.force_login(user)
    return user


def give(boss: User, account: Account, amount: int, **fields) -> postings.Posted:
    fields = {"reason": "Why not", "nonce": uuid.uuid4().hex, "ip": None} | fields
    return staff_actions.give_or_take(
        actor_id=boss.pk, account_id=account.pk, amount=amount, **fields
    )


def test_two_gifts_at_once_do_not_pass_the_days_limit(account, boss, settings):
    settings.STAFF_DAILY_CREDITS = 10
    other = money.open_account()
    outcomes = at_once(lambda number: give(boss, account if number % 2 else other, 4), number_of=6)
    assert sorted(outcomes) == [*["StaffRefused"] * 4, "done", "done"]
    assert staff_actions.given_today(boss.pk) == 8


def test_one_form_sent_six_times_at_once_counts_once(account, boss):
    outcomes = at_once(lambda _: give(boss, account, 4, nonce="same"), number_of=6)
    assert outcomes == ["done"] * 6
    assert money.state(account) == (4, 0, 0)
    assert AuditRecord.objects.count() == 1


def test_a_gift_pays_debt_first(account, boss):
    order = money.order(account, 100)
    money.settle(money.hold(account, 100), cost=100)
    money.refund(order, 100)
    give(boss, account, 130)
    assert money.state(account) == (30, 0, 0)


@pytest.mark.parametrize(("amount", "reason"), [(0, "Why not"), (5, "  ")])
def test_an_amount_and_a_reason_are_needed(account, boss, amount, reason):
    with pytest.raises(staff_actions.StaffRefused):
        give(boss, account, amount, reason=reason)


def at_once(fn, number_of: int) -> list[str]:
    """What becomes of calls that begin at the same moment."""
    start = threading.Barrier(number_of)
    outcomes: list[str] = []

    def call(number: int) -> None:
        start.wait(30)
        try:
            fn(number)
            outcomes.append("done")
        except staff_actions.StaffRefused as refused:
            outcomes.append(type(refused).__name__)
        finally:
            connections.close_all()

    threads = [threading.Thread(target=call, args=[number]) for number in range(number_of)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return outcomes


# --- The report ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "month"),
    [("2026-02", date(2026, 2, 1)), ("2026-13", None), ("", None), ("; --", None)],
)
def test_a_month_is_read_or_is_this_one(text, month):
    assert staff_report.month_of(text) == (month or timezone.localdate().replace(day=1))


def test_months_later_and_earlier():
    assert staff_report.later(date(2026, 12, 1), 1) == date(2027, 1, 1)
    assert staff_report.later(date(2026, 1, 1), -1) == date(2025, 12, 1)
    assert staff_report.later(date(2026, 6, 1), -11) == date(2025, 7, 1)


def test_the_figures_are_right(account, boss, settings):
    settings.TIME_ZONE = "Europe/Berlin"
    month = date(2026, 3, 1)
    # The first half hour of March where we are, and still February in London.
    first = datetime(2026, 2, 28, 23, 30, tzinfo=UTC)
    inside = datetime(2026, 3, 20, tzinfo=UTC)
    after = datetime(2026, 3, 31, 22, 0, tzinfo=UTC)
    bought = money.order(account, 1000 * CREDIT, paid_at=first, amount_minor=999)
    lot = account.lots.get()
    type(lot).objects.filter(pk=lot.pk).update(paid_minor=999, currency="USD")
    money.order(account, 10 * CREDIT, paid_at=after, amount_minor=100)
    money.order(account, 20 * CREDIT, paid_at=inside, amount_minor=800, currency="JPY")
    money.order(account, 5 * CREDIT, status=Order.Status.REVIEW)
    refund = Refund.objects.create(
        order=bought, amount_minor=99, status=Refund.Status.SUCCEEDED, initiated_by="staff"
    )
    Refund.objects.filter(pk=refund.pk).update(created_at=inside)
    Refund.objects.create(order=bought, amount_minor=7, initiated_by="staff")
    for number, status in enumerate([Dispute.Status.OPEN, Dispute.Status.WON]):
        dispute = Dispute.objects.create(
            order=bought,
            provider="sandbox",
            provider_dispute_id=str(number),
            amount_minor=50,
            status=status,
            funds_withdrawn=True,
        )
        Dispute.objects.filter(pk=dispute.pk).update(created_at=inside)
    give(boss, account, 30 * CREDIT)
    money.settle(money.hold(account, 40 * CREDIT), cost=35 * CREDIT)
    money.hold(account, 8 * CREDIT)
    money.hold(account, 2 * CREDIT, expires_at=timezone.now() - timedelta(minutes=1))
    for number, event_status in enumerate(ProviderEvent.Status):
        ProviderEvent.objects.create(
            provider="sandbox", event_id=str(number), event_type="x", body=b"", status=event_status
        )
    for day, model, cost in ((1, "small", 5), (31, "small", 6), (31, "large", 40)):
        DailyUsage.objects.create(
            day=date(2026, 3, day), user_id=account.user_id, model=model, purpose=Purpose.CHAT,
            calls=1, input_tokens=10, cached_tokens=0, output_tokens=5, reasoning_tokens=0,
            cost=cost, charged=cost - 3, shortfall=1, absorbed=2,
        )  # fmt: skip
    DailyUsage.objects.create(
        day=date(2026, 4, 1), user_id=account.user_id, model="small", purpose=Purpose.CHAT,
        calls=1, input_tokens=10, cached_tokens=0, output_tokens=5, reasoning_tokens=0,
        cost=1000, charged=1000, shortfall=0, absorbed=0,
    )  # fmt: skip
    check = LedgerCheck.objects.create(started_at=inside, entries=5)

    found = staff_report.make(month)

    assert [
        (row.month, row.currency, row.orders, row.paid, row.refunded, row.disputed, row.kept)
        for row in found.revenue
    ] == [
        (month, "JPY", 1, 800, 0, 0, 800),
        (month, "USD", 1, 999, 99, 50, 850),
    ]
    # The gift was spent first, then 5 credits of the lot that was paid for.
    assert [(row.kind, row.currency, row.credits, row.worth) for row in found.liabilities] == [
        ("paid", "", 30 * CREDIT, 0),
        ("paid", "USD", 995 * CREDIT, 994),
    ]
    assert found.balance == 1025 * CREDIT
    assert found.debt == 0
    assert [(row.model, row.sums.cost, row.sums.calls) for row in found.models] == [
        ("large", 40, 1),
        ("small", 11, 2),
    ]
    assert (found.spent.cost, found.spent.charged, found.spent.shortfall, found.spent.absorbed) == (
        51,
        42,
        3,
        6,
    )
    assert (found.holds.count, found.holds.amount, found.holds.overdue) == (2, 10 * CREDIT, 1)
    assert found.holds.oldest is not None
    assert (found.orders_in_review, found.events_in_review, found.events_failed) == (1, 1, 1)
    assert (found.refunds_open, found.disputes_open) == (1, 1)
    assert found.last_check == check
    assert {row.name: row.total for row in found.counter_accounts} == {
        "payments": -1030 * CREDIT,
        "grants": -30 * CREDIT,
        "revenue": 35 * CREDIT,
    }
    assert sum(row.total for row in found.counter_accounts) + found.balance == 0


def test_the_report_of_an_empty_system(client, boss):
    page = client.get(reverse("billing_report"), {"month": "2026-03"})
    assert page.status_code == 200
    assert "Not checked yet." in page.text
    assert "No purchases" in page.text


def test_the_report_takes_a_fixed_number_of_queries(client, boss, django_assert_max_num_queries):
    for _ in range(3):
        account = money.open_account(100 * CREDIT)
        money.order(account, paid_at=timezone.now())
        money.hold(account, 5)
    with django_assert_max_num_queries(25):
        assert client.get(reverse("billing_report")).status_code == 200


def test_the_report_names_problems_and_has_the_books_checked(client, boss):
    LedgerCheck.objects.create(
        started_at=timezone.now(),
        entries=1234567,
        problems=[{"code": "x", "where": "account 7", "message": "It is wrong."}],
    )
    page = client.get(reverse("billing_report"))
    assert "account 7: It is wrong." in page.text
    assert "1,234,567 entries" in page.text
    assert client.get(reverse("billing_report_check")).status_code == 405
    assert client.post(reverse("billing_report_check")).status_code == 302
    assert AuditRecord.objects.get().action == "check ledger"


def test_the_report_is_for_who_may_see_it(client):
    clerk = User.objects.create_user("clerk@example.org", is_staff=True)
    client.force_login(clerk)
    assert client.get(reverse("billing_report")).status_code == 403
    assert client.post(reverse("billing_report_check")).status_code == 403


def test_counter_accounts_hold_the_other_side_of_what_staff_took(account, boss):
    money.grant(account, 50)
    money_transaction(
        postings.adjust, account_id=account.pk, amount=-20, key="k", actor_id=boss.pk, note="n"
    )
    found = staff_report.make(timezone.localdate().replace(day=1))
    assert {row.name: row.month for row in found.counter_accounts} == {
        "grants": -50,
        "adjustments": 20,
    }
