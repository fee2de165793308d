from __future__ import annotations

import time
import uuid
from datetime import timedelta

import pytest
from django.db import IntegrityError, transaction
from django.utils import timezone

from accounts.models import User
from billing import ledger
from billing.models import Account, Hold, LedgerEntry
from chatproject.lib.db import money_transaction

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def account(settings) -> Account:
    settings.SIGNUP_CREDITS = 0
    user = User.objects.create_user("somebody@example.org")
    return money_transaction(ledger.open_account, user_id=user.pk)


def grant(account: Account, amount: int, **fields) -> ledger.Posted:
    fields.setdefault("key", uuid.uuid4().hex)
    return money_transaction(ledger.grant, account_id=account.pk, amount=amount, **fields)


def hold(account: Account, amount: int, **fields) -> Hold:
    fields.setdefault("key", uuid.uuid4().hex)
    fields.setdefault("expires_at", timezone.now() + timedelta(minutes=20))
    return money_transaction(ledger.hold, account_id=account.pk, amount=amount, **fields)


def state(account: Account) -> tuple[int, int, int]:
    account.refresh_from_db()
    return account.balance, account.held, account.debt


def test_what_is_held_is_not_spent_twice(account):
    grant(account, 100)
    held = hold(account, 70)
    assert state(account) == (100, 70, 0)
    with pytest.raises(ledger.InsufficientCredits) as refused:
        hold(account, 40)
    assert (refused.value.required, refused.value.available, refused.value.missing) == (40, 30, 10)
    assert Hold.objects.count() == 1
    assert money_transaction(ledger.settle, hold_id=held.pk, cost=50).charged == 50
    assert state(account) == (50, 0, 0)


def test_a_hold_is_settled_once(account):
    grant(account, 100)
    held = hold(account, 70)
    first = money_transaction(ledger.settle, hold_id=held.pk, cost=50)
    second = money_transaction(ledger.settle, hold_id=held.pk, cost=60)
    assert (first.charged, first.is_new) == (50, True)
    assert (second.charged, second.is_new) == (50, False)
    assert state(account) == (50, 0, 0)


def test_what_cannot_be_charged_is_a_shortfall(account):
    grant(account, 100)
    held = hold(account, 70)
    other = hold(account, 20)
    settled = money_transaction(ledger.settle, hold_id=held.pk, cost=200)
    assert (settled.charged, settled.shortfall) == (80, 120)
    assert state(account) == (20, 20, 0)
    money_transaction(ledger.release, hold_id=other.pk)
    assert state(account) == (20, 0, 0)


def test_expiring_credits_are_spent_first_and_bought_ones_last(account):
    now = timezone.now()
    grant(account, 10, kind=LedgerEntry.Kind.PURCHASE)
    grant(account, 10)
    grant(account, 10, expires_at=now + timedelta(days=2))
    grant(account, 10, expires_at=now + timedelta(days=1))
    held = hold(account, 25)
    money_transaction(ledger.settle, hold_id=held.pk, cost=25)
    left = list(account.lots.order_by("id").values_list("remaining", flat=True))
    assert left == [10, 5, 0, 0]


def test_credits_past_their_date_live_as_long_as_a_hold_needs_them(account):
    lot = grant(account, 100, expires_at=timezone.now() + timedelta(milliseconds=50))
    held = hold(account, 60)
    assert lot.is_new
    time.sleep(0.06)
    assert money_transaction(ledger.expire, account_id=account.pk) == 40
    assert state(account) == (60, 60, 0)
    money_transaction(ledger.settle, hold_id=held.pk, cost=10)
    assert state(account) == (0, 0, 0)
    account.refresh_from_db()
    assert account.next_expiry_at is None


def test_the_ledger_is_written_inside_a_money_transaction_only(account):
    with pytest.raises(RuntimeError), transaction.atomic():
        ledger.grant(account_id=account.pk, amount=1, key="a")


def test_the_database_refuses_a_changed_entry(account):
    entry = grant(account, 5).entry
    with pytest.raises(IntegrityError):
        LedgerEntry.objects.filter(pk=entry.pk).update(note="no")
    with pytest.raises(IntegrityError):
        entry.delete()


def test_the_database_refuses_a_balance_that_nobody_posted(account):
    with pytest.raises(IntegrityError, match="out of balance"):
        Account.objects.filter(pk=account.pk).update(balance=5)
