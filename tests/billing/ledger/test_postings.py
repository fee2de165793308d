from __future__ import annotations

import time
from datetime import timedelta

import pytest
from django.db import IntegrityError, connection, transaction
from django.utils import timezone

from billing.ledger import postings
from billing.models import Account, Hold, LedgerEntry
from billing.signals import balance_changed
from chatproject.lib.db import money_transaction
from tests.support import money
from tests.support.money import give_back, grant, hold, order, refund, state

pytestmark = pytest.mark.django_db(transaction=True)


def test_what_is_held_is_not_spent_twice(account):
    grant(account, 100)
    held = hold(account, 70)
    assert state(account) == (100, 70, 0)
    with pytest.raises(postings.InsufficientCredits) as refused:
        hold(account, 40)
    assert (refused.value.required, refused.value.available, refused.value.missing) == (40, 30, 10)
    assert Hold.objects.count() == 1
    assert money_transaction(postings.settle, hold_id=held.pk, cost=50).charged == 50
    assert state(account) == (50, 0, 0)


def test_a_hold_is_settled_once(account):
    grant(account, 100)
    held = hold(account, 70)
    first = money_transaction(postings.settle, hold_id=held.pk, cost=50)
    second = money_transaction(postings.settle, hold_id=held.pk, cost=60)
    assert (first.charged, first.is_new) == (50, True)
    assert (second.charged, second.is_new) == (50, False)
    assert state(account) == (50, 0, 0)


def test_what_cannot_be_charged_is_a_shortfall(account):
    grant(account, 100)
    held = hold(account, 70)
    other = hold(account, 20)
    settled = money_transaction(postings.settle, hold_id=held.pk, cost=200)
    assert (settled.charged, settled.shortfall) == (80, 120)
    assert state(account) == (20, 20, 0)
    money_transaction(postings.release, hold_id=other.pk)
    assert state(account) == (20, 0, 0)


def test_expiring_credits_are_spent_first_and_bought_ones_last(account):
    now = timezone.now()
    grant(account, 10, kind=LedgerEntry.Kind.PURCHASE)
    grant(account, 10)
    grant(account, 10, expires_at=now + timedelta(days=2))
    grant(account, 10, expires_at=now + timedelta(days=1))
    held = hold(account, 25)
    money_transaction(postings.settle, hold_id=held.pk, cost=25)
    left = list(account.lots.order_by("id").values_list("remaining", flat=True))
    assert left == [10, 5, 0, 0]


def test_credits_past_their_date_live_as_long_as_a_hold_needs_them(account):
    lot = grant(account, 100, expires_at=timezone.now() + timedelta(milliseconds=50))
    held = hold(account, 60)
    assert lot.is_new
    time.sleep(0.06)
    assert money_transaction(postings.expire, account_id=account.pk) == 40
    assert state(account) == (60, 60, 0)
    money_transaction(postings.settle, hold_id=held.pk, cost=10)
    assert state(account) == (0, 0, 0)
    account.refresh_from_db()
    assert account.next_expiry_at is None


def test_the_ledger_is_written_inside_a_money_transaction_only(account):
    with pytest.raises(RuntimeError), transaction.atomic():
        postings.grant(account_id=account.pk, amount=1, key="a")


def test_the_database_refuses_a_changed_entry(account):
    entry = grant(account, 5).entry
    with pytest.raises(IntegrityError):
        LedgerEntry.objects.filter(pk=entry.pk).update(note="no")
    with pytest.raises(IntegrityError):
        entry.delete()


def test_the_database_refuses_a_balance_that_nobody_posted(account):
    with pytest.raises(IntegrityError, match="out of balance"):
        Account.objects.filter(pk=account.pk).update(balance=5)


def test_an_account_out_of_balance_can_be_frozen(account):
    grant(account, 5)
    with connection.cursor() as cursor:
        cursor.execute("SET session_replication_role = replica")
        try:
            cursor.execute("UPDATE billing_account SET balance = balance + 1")
        finally:
            cursor.execute("SET session_replication_role = DEFAULT")
    frozen = Account.Status.FROZEN
    money_transaction(postings.set_status, account_id=account.pk, status=frozen)
    assert state(account) == (6, 0, 0)
    assert account.status == frozen
    with pytest.raises(postings.AccountFrozen):
        hold(account, 1)


def test_debt_is_paid_from_what_becomes_free(account):
    bought = order(account, 100)
    held = hold(account, 80)
    assert refund(bought, 100) == postings.TakenBack(credits=20, debt=80)
    assert state(account) == (80, 80, 80)
    with pytest.raises(postings.AccountInDebt):
        hold(account, 1)
    money.settle(held, 30)
    assert state(account) == (0, 0, 30)
    grant(account, 100)
    assert state(account) == (70, 0, 0)
    assert money.problems() == []


def test_what_was_paid_of_a_debt_comes_back_with_it(account):
    bought = order(account, 100)
    money.settle(hold(account, 70), 70)
    assert refund(bought, 100) == postings.TakenBack(credits=30, debt=70)
    grant(account, 50)
    assert state(account) == (0, 0, 20)
    give_back(bought, 30, 70, key="undone")
    give_back(bought, 30, 70, key="undone")
    assert state(account) == (80, 0, 0)
    assert money.problems() == []


def test_a_refund_takes_its_own_order_first(account):
    other, bought = order(account, 100), order(account, 100)
    assert postings.refundable(order_id=bought.pk) == 100
    refund(bought, 90)
    assert (postings.refundable(order_id=bought.pk), postings.refundable(order_id=other.pk)) == (
        10,
        100,
    )
    hold(account, 105)
    assert (postings.refundable(order_id=bought.pk), postings.refundable(order_id=other.pk)) == (
        5,
        5,
    )


def test_a_key_that_was_used_for_something_else_is_refused(account):
    bought, there = order(account, 100), money.open_account(5)
    grant(account, 5, key="k")
    hold(account, 5, key="k")
    refund(bought, 7, key="r")
    for again in (
        lambda: grant(account, 6, key="k"),
        lambda: grant(account, 5, key="k", kind=LedgerEntry.Kind.PROMO),
        lambda: grant(there, 5, key="k"),
        lambda: hold(there, 5, key="k"),
        lambda: refund(bought, 8, key="r"),
        lambda: refund(order(account, 100), 7, key="r"),
        lambda: refund(bought, 5, key="k"),
    ):
        with pytest.raises(postings.KeyReused):
            again()


def test_what_makes_no_sense_is_refused(account):
    bought = order(account, 100)
    held = hold(account, 5)
    correction = {"account_id": account.pk, "key": "c", "actor_id": account.user_id}
    for nonsense in (
        lambda: grant(account, 0),
        lambda: hold(account, 0),
        lambda: refund(bought, 0),
        lambda: give_back(bought, -1, 1),
        lambda: money_transaction(postings.settle, hold_id=held.pk, cost=-1),
        lambda: money_transaction(postings.adjust, amount=0, note="why", **correction),
        lambda: money_transaction(postings.adjust, amount=1, note=" ", **correction),
    ):
        with pytest.raises(ValueError, match=r"a \w+ (is|has)|never negative"):
            nonsense()
    assert state(account) == (100, 5, 0)


def test_a_listener_that_fails_undoes_nothing(account, caplog):
    def fails(sender: object, **kwargs: object) -> None:
        raise KeyError("as told")

    balance_changed.connect(fails)
    try:
        grant(account, 5)
    finally:
        balance_changed.disconnect(fails)
    assert state(account) == (5, 0, 0)
    assert "as told" in caplog.text


def test_what_is_due_is_neither_refundable_nor_spent_last(account):
    bought = order(account, 100)
    hold(account, 100)
    grant(account, 30)
    held = hold(account, 30)
    grant(account, 50, expires_at=timezone.now() - timedelta(seconds=1))
    assert state(account) == (180, 130, 0)
    assert postings.refundable(order_id=bought.pk) == 0
    money.settle(held, 30)
    # The lot past its date paid, and the rest of it is gone.
    assert list(account.lots.order_by("id").values_list("remaining", flat=True)) == [100, 30, 0]
    assert state(account) == (130, 100, 0)
