"""Disputes: credits taken and returned, and accounts frozen and set free."""

from __future__ import annotations

import pytest

from billing.credits import MICRO
from billing.ledger import postings
from billing.models import Account, Dispute, LedgerEntry, Order
from billing.payments import checkout
from billing.payments.providers import sandbox as bank
from chatproject.lib.db import money_transaction
from tests.support import money, purchases
from tests.support.fakepay import Switches

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("sandbox")]

FULL = 1100 * MICRO


def open_dispute(of: Order, amount_minor: int | None = None) -> str:
    """Dispute an order at the bank and sync it; returns the dispute's id."""
    dispute_id = bank.dispute(purchases.bank_id(of), amount_minor)
    checkout.sync_order(of.pk)
    return dispute_id


def close_dispute(of: Order, dispute_id: str, *, is_won: bool) -> None:
    """End a dispute at the bank and sync its order."""
    bank.decide(purchases.bank_id(of), dispute_id, is_won=is_won)
    checkout.sync_order(of.pk)


def status(account: Account) -> str:
    account.refresh_from_db()
    return account.status


def test_dispute_takes_credits_and_freezes_once(account, paid):
    bank.dispute(purchases.bank_id(paid))
    purchases.at_once(10, lambda: checkout.sync_order(paid.pk))
    assert money.state(account) == (0, 0, 0)
    assert status(account) == "frozen"
    with pytest.raises(postings.AccountFrozen):
        money.hold(account, 1)
    dispute = Dispute.objects.get()
    assert (dispute.status, dispute.credits, dispute.debt) == ("open", FULL, 0)
    assert LedgerEntry.objects.filter(kind="dispute").count() == 1
    assert purchases.alerts() == ["Parley: A payment is disputed"]
    assert money.problems() == []


def test_disputed_credits_already_spent_become_debt(account, paid):
    money.spend(account, 1000 * MICRO)
    open_dispute(paid)
    assert money.state(account) == (0, 0, 1000 * MICRO)
    assert money.problems() == []


def test_hold_outlives_a_dispute_and_pays_debt(account, paid):
    """The hold keeps its credits; the part that it did not need pays the debt."""
    held = money.hold(account, 1000 * MICRO)
    open_dispute(paid)
    assert money.state(account) == (1000 * MICRO, 1000 * MICRO, 1000 * MICRO)
    money.settle(held, 400 * MICRO)
    assert money.state(account) == (0, 0, 400 * MICRO)
    assert money.problems() == []


@pytest.mark.parametrize("spent", [0, 300 * MICRO, FULL])
def test_won_dispute_undoes_everything(account, paid, spent):
    if spent:
        money.spend(account, spent)
    bank.decide(purchases.bank_id(paid), open_dispute(paid), is_won=True)
    purchases.at_once(5, lambda: checkout.sync_order(paid.pk))
    assert money.state(account) == (FULL - spent, 0, 0)
    assert status(account) == "active"
    assert (Dispute.objects.get().status, Dispute.objects.get().returned) == ("won", True)
    assert purchases.alerts() == ["Parley: A payment is disputed", "Parley: A dispute was won"]
    assert money.problems() == []


def test_purchase_during_a_dispute_loses_nothing(account, paid):
    money.spend(account, FULL)
    dispute_id = open_dispute(paid)
    # Bought before the account was frozen, paid after.
    money.grant(account, 600 * MICRO)
    assert money.state(account) == (0, 0, 500 * MICRO)
    close_dispute(paid, dispute_id, is_won=True)
    assert money.state(account) == (600 * MICRO, 0, 0)
    assert money.problems() == []


def test_lost_dispute_takes_the_credits_for_good(account, paid):
    close_dispute(paid, open_dispute(paid), is_won=False)
    checkout.sync_order(paid.pk)
    assert money.state(account) == (0, 0, 0)
    assert status(account) == "frozen"
    assert Dispute.objects.get().status == "lost"
    assert purchases.alerts() == ["Parley: A payment is disputed", "Parley: A dispute was lost"]


def test_dispute_won_before_the_first_sync_is_harmless(account, paid):
    close_dispute(paid, bank.dispute(purchases.bank_id(paid)), is_won=True)
    assert money.state(account) == (FULL, 0, 0)
    assert status(account) == "active"
    assert LedgerEntry.objects.count() == 2


def test_older_state_does_not_undo_a_victory(account, paid):
    dispute_id = bank.dispute(purchases.bank_id(paid))
    older = bank.SandboxProvider().fetch(paid)
    close_dispute(paid, dispute_id, is_won=True)
    money_transaction(checkout.apply_state, paid.pk, older)
    assert money.state(account) == (FULL, 0, 0)
    assert status(account) == "active"


def test_inquiry_takes_nothing(account, paid):
    bank.dispute(purchases.bank_id(paid))
    [inquiry] = purchases.payment(paid).disputes
    purchases.change_payment(paid, disputes=[inquiry | {"funds_withdrawn": False}])
    checkout.sync_order(paid.pk)
    assert money.state(account) == (FULL, 0, 0)
    assert status(account) == "active"
    assert Dispute.objects.get().funds_withdrawn is False


def test_partial_dispute_takes_its_share_of_credits(account, paid):
    open_dispute(paid, 100)
    assert money.state(account) == (FULL * 4 // 5, 0, 0)


def test_last_won_dispute_unfreezes_the_account(account):
    orders = [purchases.paid(account), purchases.paid(account)]
    disputes = [bank.dispute(purchases.bank_id(order)) for order in orders]
    for order in orders:
        checkout.sync_order(order.pk)
    for order, dispute_id, expected in zip(orders, disputes, ["frozen", "active"], strict=True):
        close_dispute(order, dispute_id, is_won=True)
        assert status(account) == expected
    assert money.state(account) == (2 * FULL, 0, 0)
    assert money.problems() == []


def test_won_dispute_keeps_the_freeze_of_staff(account, paid):
    money_transaction(postings.set_status, account_id=account.pk, status=Account.Status.FROZEN)
    close_dispute(paid, open_dispute(paid), is_won=True)
    assert status(account) == "frozen"
    assert money.state(account) == (FULL, 0, 0)


def test_money_refunded_and_disputed_takes_credits_once(account, paid):
    """More money than the price went back: that loss is shown to staff, and no debt of the buyer."""
    bank.refund_there(purchases.bank_id(paid), 300)
    open_dispute(paid, 300)
    assert money.state(account) == (0, 0, 0)
    assert Order.objects.get().lost_minor == 100
    assert money.problems() == []


@pytest.mark.parametrize(
    ("ending", "balance", "debt", "standing"),
    [("win", 1000 * MICRO, 0, "active"), ("lose", 0, 100 * MICRO, "frozen")],
)
def test_dispute_at_a_real_provider(
    account, fakepay, side, provider_order, ending, balance, debt, standing
):
    payment_id = side.pay(provider_order.provider_order_id)
    fakepay.postman.switches = Switches(copies=2, shuffle=True)
    purchases.flush(fakepay)
    money.spend(account, 100 * MICRO)
    dispute_id = side.open_dispute(payment_id)
    side.withdraw(dispute_id)
    purchases.flush(fakepay)
    assert money.state(account) == (0, 0, 100 * MICRO)
    assert status(account) == "frozen"
    getattr(side, ending)(dispute_id)
    purchases.flush(fakepay)
    assert money.state(account) == (balance, 0, debt)
    assert status(account) == standing
    assert money.problems() == []
