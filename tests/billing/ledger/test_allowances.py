"""The monthly credits of a plan: one lot per account, expiring at the end of the month."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial

import pytest

from billing.ledger import allowances, postings
from billing.models import Account, CreditLot, LedgerEntry, Plan
from chatproject.lib.db import money_transaction
from tests.support import money
from tests.support.bad_rows import refused
from tests.support.threads import race

pytestmark = pytest.mark.django_db(transaction=True)

MONTH = datetime(2099, 3, 10, 12, tzinfo=UTC)
NEXT_MONTH = datetime(2099, 4, 1, 0, 0, 1, tzinfo=UTC)


def open_account(plan: Plan | None = None) -> Account:
    account = money.open_account()
    Account.objects.filter(pk=account.pk).update(plan=plan)
    return account


def make_plan(slug: str = "school", credits: int = 100, **fields) -> Plan:
    return Plan.objects.create(slug=slug, name=slug.title(), monthly_credits=credits, **fields)


def test_plan_grants_its_credits_once_a_month():
    account = open_account(make_plan())
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
        # Where April, and summer time, have begun already.
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
def test_credits_expire_with_the_sites_month(settings, zone, now, ends):
    settings.TIME_ZONE = zone
    open_account(make_plan())
    allowances.grant_month(now)
    assert CreditLot.objects.get().expires_at == ends


def test_accounts_without_plan_have_the_default():
    own = open_account(make_plan("own", 7))
    without = open_account()
    make_plan("everybody", 3, is_default=True)
    assert allowances.grant_month(MONTH) == 2
    assert (money.state(own)[0], money.state(without)[0]) == (7, 3)


def test_plan_without_credits_grants_nothing():
    open_account(make_plan("own", 0))
    open_account()
    assert allowances.grant_month(MONTH) == 0
    make_plan("everybody", 0, is_default=True)
    assert allowances.grant_month(MONTH) == 0


def test_first_grant_of_a_month_counts():
    account = open_account(make_plan())
    allowances.grant_month(MONTH)
    Account.objects.filter(pk=account.pk).update(plan=make_plan("more", 900))
    assert allowances.grant_month(MONTH) == 0
    assert money.state(account)[0] == 100


def test_frozen_account_is_granted_once_active_again():
    account = open_account(make_plan())
    for status, granted in ((Account.Status.FROZEN, 0), (Account.Status.ACTIVE, 1)):
        money_transaction(postings.set_status, account_id=account.pk, status=status)
        assert allowances.grant_month(MONTH) == granted


def test_grants_span_batches_and_later_accounts(monkeypatch):
    monkeypatch.setattr(allowances, "BATCH", 2)
    make_plan(is_default=True)
    for _ in range(5):
        open_account()
    assert allowances.grant_month(MONTH) == 5
    open_account()
    assert allowances.grant_month(MONTH) == 1


def test_grants_beyond_the_time_limit_come_next(monkeypatch):
    open_account(make_plan())
    with monkeypatch.context() as patch:
        patch.setattr(allowances, "SECONDS", -1.0)
        assert allowances.grant_month(MONTH) == 0
    assert allowances.grant_month(MONTH) == 1


def test_concurrent_calls_grant_once():
    make_plan(is_default=True)
    for _ in range(6):
        open_account()
    granted = race([partial(allowances.grant_month, MONTH)] * 3)
    assert sum(granted) == LedgerEntry.objects.count() == 6
    assert set(Account.objects.values_list("balance", flat=True)) == {100}


def test_bad_account_does_not_stop_the_others(caplog):
    plan = make_plan()
    accounts = [open_account(plan) for _ in range(3)]
    with refused("billing_ledgerentry", f"NEW.account_id = {accounts[0].pk}"):
        assert allowances.grant_month(MONTH) == 2
    assert [account.lots.count() for account in accounts] == [0, 1, 1]
    assert f"the allowance of account {accounts[0].pk} failed" in caplog.text
    assert allowances.grant_month(MONTH) == 1
