"""Concurrent grants by staff, and the figures of their report."""

from __future__ import annotations

import uuid
from datetime import UTC, date, datetime, timedelta
from functools import partial

import pytest
from django.urls import reverse
from django.utils import timezone

from accounts.models import User
from billing.credits import MICRO
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
from tests.support import money
from tests.support.threads import race

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("valkey_url")]


def give(boss: User, account: Account, amount: int, **fields) -> postings.Posted:
    fields = {"reason": "Why not", "nonce": uuid.uuid4().hex, "ip": None} | fields
    return staff_actions.give_or_take(
        actor_id=boss.pk, account_id=account.pk, amount=amount, **fields
    )


def test_concurrent_grants_respect_the_daily_limit(account, boss, settings):
    settings.STAFF_DAILY_CREDITS = 10
    other = money.open_account()
    done = race([partial(give, boss, one, 4) for one in (account, other) * 3])
    assert sorted(type(one).__name__ for one in done) == ["Posted"] * 2 + ["StaffRefused"] * 4
    assert staff_actions.given_today(boss.pk) == 8


def test_form_sent_concurrently_counts_once(account, boss):
    done = race([partial(give, boss, account, 4, nonce="same")] * 6)
    assert sorted(one.is_new for one in done) == [False] * 5 + [True]
    assert money.state(account) == (4, 0, 0)
    assert AuditRecord.objects.count() == 1


def test_grant_pays_debt_first(account, boss):
    order = money.order(account, 100)
    money.spend(account, 100)
    money.refund(order, 100)
    give(boss, account, 130)
    assert money.state(account) == (30, 0, 0)


@pytest.mark.parametrize(("amount", "reason"), [(0, "Why not"), (5, "  ")])
def test_grant_needs_amount_and_reason(account, boss, amount, reason):
    with pytest.raises(staff_actions.StaffRefused):
        give(boss, account, amount, reason=reason)


# --- The report ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "month"),
    [("2026-02", date(2026, 2, 1)), ("2026-13", None), ("", None), ("; --", None)],
)
def test_unreadable_month_becomes_this_month(text, month):
    assert staff_report.month_of(text) == (month or timezone.localdate().replace(day=1))


def test_months_are_counted_across_years():
    assert staff_report.later(date(2026, 12, 1), 1) == date(2027, 1, 1)
    assert staff_report.later(date(2026, 1, 1), -1) == date(2025, 12, 1)
    assert staff_report.later(date(2026, 6, 1), -11) == date(2025, 7, 1)


def test_report_figures_are_right(account, boss, settings):
    settings.TIME_ZONE = "Europe/Berlin"
    month = date(2026, 3, 1)
    # The first half hour of March by the site's time zone, still February by UTC.
    first = datetime(2026, 2, 28, 23, 30, tzinfo=UTC)
    inside = datetime(2026, 3, 20, tzinfo=UTC)
    after = datetime(2026, 3, 31, 22, 0, tzinfo=UTC)
    bought = money.order(account, 1000 * MICRO, paid_at=first, amount_minor=999)
    lot = account.lots.get()
    type(lot).objects.filter(pk=lot.pk).update(paid_minor=999, currency="USD")
    money.order(account, 10 * MICRO, paid_at=after, amount_minor=100)
    money.order(account, 20 * MICRO, paid_at=inside, amount_minor=800, currency="JPY")
    money.order(account, 5 * MICRO, status=Order.Status.REVIEW)
    refund = Refund.objects.create(
        order=bought, amount_minor=99, status=Refund.Status.SUCCEEDED, initiated_by="staff"
    )
    Refund.objects.filter(pk=refund.pk).update(created_at=inside)
    Refund.objects.create(order=bought, amount_minor=7, initiated_by="staff")
    for number, status in enumerate([Dispute.Status.OPEN, Dispute.Status.WON]):
        dispute = Dispute.objects.create(
            order=bought, provider="sandbox", provider_dispute_id=str(number), amount_minor=50,
            status=status, funds_withdrawn=True,
        )  # fmt: skip
        Dispute.objects.filter(pk=dispute.pk).update(created_at=inside)
    give(boss, account, 30 * MICRO)
    money.settle(money.hold(account, 40 * MICRO), cost=35 * MICRO)
    money.hold(account, 8 * MICRO)
    money.hold(account, 2 * MICRO, expires_at=timezone.now() - timedelta(minutes=1))
    for number, event_status in enumerate(ProviderEvent.Status):
        ProviderEvent.objects.create(
            provider="sandbox", event_id=str(number), event_type="x", body=b"", status=event_status
        )
    days = [(3, 1, "small", 5), (3, 31, "small", 6), (3, 31, "large", 40), (4, 1, "small", 1000)]
    for number, day, model, cost in days:
        DailyUsage.objects.create(
            day=date(2026, number, day), user_id=account.user_id, model=model, purpose=Purpose.CHAT,
            calls=1, input_tokens=10, cached_tokens=0, output_tokens=5, reasoning_tokens=0,
            cost=cost, charged=cost - 3, shortfall=1, absorbed=2,
        )  # fmt: skip
    check = LedgerCheck.objects.create(started_at=inside, entries=5)

    found = staff_report.make(month)

    assert [
        (row.month, row.currency, row.orders, row.paid, row.refunded, row.disputed, row.kept)
        for row in found.revenue
    ] == [(month, "JPY", 1, 800, 0, 0, 800), (month, "USD", 1, 999, 99, 50, 850)]
    # The granted credits were spent first, then 5 of the bought ones.
    assert [(row.kind, row.currency, row.credits, row.worth) for row in found.liabilities] == [
        ("paid", "", 30 * MICRO, 0),
        ("paid", "USD", 995 * MICRO, 994),
    ]
    assert found.balance == 1025 * MICRO
    assert found.debt == 0
    assert [(row.model, row.sums.cost, row.sums.calls) for row in found.models] == [
        ("large", 40, 1),
        ("small", 11, 2),
    ]
    spent = found.spent
    assert (spent.cost, spent.charged, spent.shortfall, spent.absorbed) == (51, 42, 3, 6)
    assert (found.holds.count, found.holds.amount, found.holds.overdue) == (2, 10 * MICRO, 1)
    assert found.holds.oldest is not None
    assert (found.orders_in_review, found.events_in_review, found.events_failed) == (1, 1, 1)
    assert (found.refunds_open, found.disputes_open) == (1, 1)
    assert found.last_check == check
    assert {row.name: row.total for row in found.counter_accounts} == {
        "payments": -1030 * MICRO,
        "grants": -30 * MICRO,
        "revenue": 35 * MICRO,
    }
    assert sum(row.total for row in found.counter_accounts) + found.balance == 0


def test_report_of_an_empty_system_opens(client, boss):
    page = client.get(reverse("billing_report"), {"month": "2026-03"})
    assert page.status_code == 200
    assert "Not checked yet." in page.text
    assert "No purchases" in page.text


def test_report_takes_a_fixed_number_of_queries(client, boss, django_assert_max_num_queries):
    for _ in range(3):
        account = money.open_account(100 * MICRO)
        money.order(account, paid_at=timezone.now())
        money.hold(account, 5)
    with django_assert_max_num_queries(25):
        assert client.get(reverse("billing_report")).status_code == 200


def test_report_lists_problems_and_starts_a_check(client, boss):
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


def test_report_is_forbidden_without_its_permission(client):
    clerk = User.objects.create_user("clerk@example.org", is_staff=True)
    client.force_login(clerk)
    assert client.get(reverse("billing_report")).status_code == 403
    assert client.post(reverse("billing_report_check")).status_code == 403


def test_counter_accounts_balance_staff_corrections(account, boss):
    money.grant(account, 50)
    money.adjust(account, -20)
    found = staff_report.make(timezone.localdate().replace(day=1))
    assert {row.name: row.month for row in found.counter_accounts} == {
        "grants": -50,
        "adjustments": 20,
    }
