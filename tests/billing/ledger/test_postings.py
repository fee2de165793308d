"""The ledger's operations, one example for each rule."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.db import transaction
from django.utils import timezone

from billing.ledger import postings
from billing.models import Account, Hold, LedgerEntry
from billing.signals import balance_changed
from chatproject.lib.db import money_transaction
from tests.support import money
from tests.support.money import give_back, grant, hold, order, refund, settle, state

pytestmark = pytest.mark.django_db(transaction=True)


def test_held_credits_are_not_held_again(account):
    grant(account, 100)
    held = hold(account, 70)
    assert state(account) == (100, 70, 0)
    with pytest.raises(postings.InsufficientCredits) as refused:
        hold(account, 40)
    assert (refused.value.required, refused.value.available, refused.value.missing) == (40, 30, 10)
    assert Hold.objects.count() == 1
    assert settle(held, 50) == postings.Settlement(charged=50, shortfall=0, is_new=True)
    assert state(account) == (50, 0, 0)


def test_hold_is_settled_once(account):
    grant(account, 100)
    held = hold(account, 70)
    for cost, is_new in ((50, True), (60, False)):
        assert settle(held, cost) == postings.Settlement(50, 0, is_new)
    assert state(account) == (50, 0, 0)


def test_uncovered_cost_is_a_shortfall(account):
    grant(account, 100)
    held = hold(account, 70)
    other = hold(account, 20)
    assert settle(held, 200) == postings.Settlement(charged=80, shortfall=120, is_new=True)
    assert state(account) == (20, 20, 0)
    money.release(other)
    assert state(account) == (20, 0, 0)


def test_expiring_credits_go_first_and_bought_last(account):
    now = timezone.now()
    grant(account, 10, kind=LedgerEntry.Kind.PURCHASE)
    grant(account, 10)
    grant(account, 10, expires_at=now + timedelta(days=2))
    grant(account, 10, expires_at=now + timedelta(days=1))
    money.spend(account, 25)
    assert list(account.lots.order_by("id").values_list("remaining", flat=True)) == [10, 5, 0, 0]


def test_held_credits_outlive_their_date(account, monkeypatch):
    date = timezone.now() + timedelta(days=1)
    grant(account, 100, expires_at=date)
    held = hold(account, 60)
    monkeypatch.setattr(timezone, "now", lambda: date)
    assert money.expire(account) == 40
    assert state(account) == (60, 60, 0)
    settle(held, 10)
    assert state(account) == (0, 0, 0)
    assert account.next_expiry_at is None


def test_ledger_is_written_in_money_transactions_only(account):
    with pytest.raises(RuntimeError), transaction.atomic():
        postings.grant(account_id=account.pk, amount=1, key="a")


def test_account_out_of_balance_can_be_frozen(account):
    grant(account, 5)
    money.tamper("UPDATE billing_account SET balance = balance + 1")
    frozen = Account.Status.FROZEN
    money_transaction(postings.set_status, account_id=account.pk, status=frozen)
    assert state(account) == (6, 0, 0)
    assert account.status == frozen
    with pytest.raises(postings.AccountFrozen):
        hold(account, 1)


def test_debt_is_paid_from_freed_credits(account):
    bought = order(account, 100)
    held = hold(account, 80)
    assert refund(bought, 100) == postings.TakenBack(credits=20, debt=80)
    assert state(account) == (80, 80, 80)
    with pytest.raises(postings.AccountInDebt):
        hold(account, 1)
    settle(held, 30)
    assert state(account) == (0, 0, 30)
    grant(account, 100)
    assert state(account) == (70, 0, 0)
    assert money.problems() == []


def test_undone_refund_returns_paid_debt(account):
    bought = order(account, 100)
    money.spend(account, 70)
    assert refund(bought, 100) == postings.TakenBack(credits=30, debt=70)
    grant(account, 50)
    assert state(account) == (0, 0, 20)
    for _ in range(2):
        give_back(bought, 30, 70, key="undone")
        assert state(account) == (80, 0, 0)
    assert money.problems() == []


def test_refund_takes_its_own_order_first(account):
    other, bought = order(account, 100), order(account, 100)

    def refundable() -> list[int]:
        return [postings.refundable(order_id=one.pk) for one in (bought, other)]

    assert refundable() == [100, 100]
    refund(bought, 90)
    assert refundable() == [10, 100]
    hold(account, 105)
    assert refundable() == [5, 5]


def test_reused_key_is_refused(account):
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


def test_impossible_amounts_are_refused(account):
    bought = order(account, 100)
    held = hold(account, 5)
    for nonsense in (
        lambda: grant(account, 0),
        lambda: hold(account, 0),
        lambda: refund(bought, 0),
        lambda: give_back(bought, -1, 1),
        lambda: settle(held, -1),
        lambda: money.adjust(account, 0),
        lambda: money.adjust(account, 1, note=" "),
    ):
        with pytest.raises(ValueError, match=r"a \w+ (is|has)|never negative"):
            nonsense()
    assert state(account) == (100, 5, 0)


def test_failing_receiver_undoes_nothing(account, caplog):
    def fails(sender: object, **kwargs: object) -> None:
        raise KeyError("a bug")

    balance_changed.connect(fails)
    try:
        grant(account, 5)
    finally:
        balance_changed.disconnect(fails)
    assert state(account) == (5, 0, 0)
    assert "a bug" in caplog.text


def test_due_credits_are_not_refundable_and_spent_first(account):
    bought = order(account, 100)
    hold(account, 100)
    grant(account, 30)
    held = hold(account, 30)
    grant(account, 50, expires_at=timezone.now() - timedelta(seconds=1))
    assert state(account) == (180, 130, 0)
    assert postings.refundable(order_id=bought.pk) == 0
    settle(held, 30)
    # The lot past its date was spent first, and the rest of it expired.
    assert list(account.lots.order_by("id").values_list("remaining", flat=True)) == [100, 30, 0]
    assert state(account) == (130, 100, 0)
