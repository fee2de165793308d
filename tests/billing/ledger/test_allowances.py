"""The credits of a plan: once a month, to every account, gone at the month's end."""

from __future__ import annotations

import threading
from datetime import UTC, datetime

import pytest
from django.db import connections

from accounts.models import User
from billing.ledger import allowances, postings, signup
from billing.models import Account, CreditLot, LedgerEntry, Plan
from chatproject.lib.db import money_transaction

pytestmark = pytest.mark.django_db(transaction=True)

MONTH = datetime(2099, 3, 10, 12, tzinfo=UTC)
NEXT_MONTH = datetime(2099, 4, 1, 0, 0, 1, tzinfo=UTC)


@pytest.fixture(autouse=True)
def no_signup_credits(settings) -> None:
    settings.SIGNUP_CREDITS = 0


def make_account(name: str = "reader", plan: Plan | None = None) -> Account:
    user = User.objects.create_user(f"{name}@example.org")
    account = money_transaction(signup.open_account, user_id=user.pk)
    Account.objects.filter(pk=account.pk).update(plan=plan)
    return account


def make_plan(slug: str = "school", credits: int = 100, **fields) -> Plan:
    return Plan.objects.create(slug=slug, name=slug.title(), monthly_credits=credits, **fields)


def test_a_plan_gives_its_credits_once_a_month():
    account = make_account(plan=make_plan())
    assert allowances.grant_month(MONTH) == 1
    assert allowances.grant_month(MONTH) == 0
    assert allowances.grant_month(NEXT_MONTH) == 1
    keys = list(LedgerEntry.objects.order_by("id").values_list("idempotency_key", flat=True))
    assert keys == [f"allowance:{account.pk}:2099-03", f"allowance:{account.pk}:2099-04"]
    assert LedgerEntry.objects.last().note == "School, 2099-03"


@pytest.mark.parametrize(
    ("zone", "now", "ends"),
    [
        ("UTC", datetime(2099, 3, 10, tzinfo=UTC), datetime(2099, 4, 1, tzinfo=UTC)),
        ("UTC", datetime(2099, 12, 31, 23, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC)),
        # Where it is April already, and summer time.
        (
            "Europe/Berlin",
            datetime(2026, 3, 31, 22, 30, tzinfo=UTC),
            datetime(2026, 4, 30, 22, tzinfo=UTC),
        ),
        (
            "Asia/Kolkata",
            datetime(2099, 3, 1, tzinfo=UTC),
            datetime(2099, 3, 31, 18, 30, tzinfo=UTC),
        ),
    ],
)
def test_they_end_with_the_month_by_the_sites_time_zone(settings, zone, now, ends):
    settings.TIME_ZONE = zone
    make_account(plan=make_plan())
    allowances.grant_month(now)
    assert CreditLot.objects.get().expires_at == ends


def test_accounts_without_a_plan_have_the_default_one():
    own = make_account("own", plan=make_plan("own", 7))
    without = make_account("without")
    make_plan("everybody", 3, is_default=True)
    assert allowances.grant_month(MONTH) == 2
    own.refresh_from_db()
    without.refresh_from_db()
    assert (own.balance, without.balance) == (7, 3)


def test_without_credits_in_a_plan_nothing_is_given():
    make_account("own", plan=make_plan("own", 0))
    make_account("without")
    assert allowances.grant_month(MONTH) == 0
    make_plan("everybody", 0, is_default=True)
    assert allowances.grant_month(MONTH) == 0


def test_the_first_grant_of_a_month_counts():
    plan = make_plan()
    account = make_account(plan=plan)
    allowances.grant_month(MONTH)
    Account.objects.filter(pk=account.pk).update(plan=make_plan("more", 900))
    assert allowances.grant_month(MONTH) == 0
    account.refresh_from_db()
    assert account.balance == 100


def test_a_frozen_account_gets_it_when_it_is_in_use_again():
    account = make_account(plan=make_plan())
    money_transaction(postings.set_status, account_id=account.pk, status=Account.Status.FROZEN)
    assert allowances.grant_month(MONTH) == 0
    money_transaction(postings.set_status, account_id=account.pk, status=Account.Status.ACTIVE)
    assert allowances.grant_month(MONTH) == 1


def test_more_accounts_than_one_batch_and_a_new_one_later(monkeypatch):
    monkeypatch.setattr(allowances, "BATCH", 2)
    make_plan(is_default=True)
    for number in range(5):
        make_account(f"reader{number}")
    assert allowances.grant_month(MONTH) == 5
    make_account("late")
    assert allowances.grant_month(MONTH) == 1


def test_what_one_call_has_no_time_for_is_done_by_the_next(monkeypatch):
    make_plan(is_default=True)
    make_account()
    with monkeypatch.context() as patch:
        patch.setattr(allowances, "SECONDS", -1.0)
        assert allowances.grant_month(MONTH) == 0
    assert allowances.grant_month(MONTH) == 1


def test_two_at_once_give_it_once():
    make_plan(is_default=True)
    for number in range(6):
        make_account(f"reader{number}")
    start = threading.Barrier(3)
    given: list[int] = []

    def grant() -> None:
        start.wait(30)
        try:
            given.append(allowances.grant_month(MONTH))
        finally:
            connections.close_all()

    threads = [threading.Thread(target=grant) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sum(given) == LedgerEntry.objects.count() == 6
    assert set(Account.objects.values_list("balance", flat=True)) == {100}
