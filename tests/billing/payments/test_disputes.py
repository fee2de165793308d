from __future__ import annotations

import pytest
from django.core import mail

from billing.credits import MICRO
from billing.ledger import postings
from billing.models import Account, Dispute, LedgerEntry, Order
from billing.payments import checkout
from billing.payments.providers import sandbox as bank
from chatproject.lib.db import money_transaction
from tests.support import money, purchases

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("sandbox")]

FULL = 1100 * MICRO


@pytest.fixture
def order(account) -> Order:
    return purchases.paid(account)


def look(order: Order) -> None:
    checkout.sync_order(order.pk)


def status(account: Account) -> str:
    account.refresh_from_db()
    return account.status


def use(account: Account, amount: int) -> None:
    money.settle(money.hold(account, amount), amount)


def told() -> list[str]:
    return [str(message.subject) for message in mail.outbox if message.to == ["staff@example.org"]]


def test_a_dispute_takes_the_credits_and_freezes_the_account_once(account, order):
    bank.dispute(purchases.there(order))
    purchases.at_once(10, lambda: look(order))
    assert money.state(account) == (0, 0, 0)
    assert status(account) == "frozen"
    with pytest.raises(postings.AccountFrozen):
        money.hold(account, 1)
    dispute = Dispute.objects.get()
    assert (dispute.status, dispute.credits, dispute.debt) == ("open", FULL, 0)
    assert LedgerEntry.objects.filter(kind="dispute").count() == 1
    assert told() == ["Parley: A payment is disputed"]
    assert money.problems() == []


def test_what_was_spent_becomes_debt(account, order):
    use(account, 1000 * MICRO)
    bank.dispute(purchases.there(order))
    look(order)
    assert money.state(account) == (0, 0, 1000 * MICRO)
    assert money.problems() == []


def test_a_hold_keeps_its_credits_and_its_rest_pays_the_debt(account, order):
    held = money.hold(account, 1000 * MICRO)
    bank.dispute(purchases.there(order))
    look(order)
    assert money.state(account) == (1000 * MICRO, 1000 * MICRO, 1000 * MICRO)
    money.settle(held, 400 * MICRO)
    assert money.state(account) == (0, 0, 400 * MICRO)
    assert money.problems() == []


@pytest.mark.parametrize("spent", [0, 300 * MICRO, FULL])
def test_a_dispute_that_is_won_undoes_everything(account, order, spent):
    if spent:
        use(account, spent)
    dispute = bank.dispute(purchases.there(order))
    look(order)
    bank.decide(purchases.there(order), dispute, is_won=True)
    purchases.at_once(5, lambda: look(order))
    assert money.state(account) == (FULL - spent, 0, 0)
    assert status(account) == "active"
    assert (Dispute.objects.get().status, Dispute.objects.get().returned) == ("won", True)
    assert told()[-1] == "Parley: A dispute was won"
    assert len(told()) == 2
    assert money.problems() == []


def test_a_purchase_between_dispute_and_victory_loses_nothing(account, order):
    use(account, FULL)
    dispute = bank.dispute(purchases.there(order))
    look(order)
    # Bought before the account was frozen, paid after.
    money.grant(account, 600 * MICRO)
    assert money.state(account) == (0, 0, 500 * MICRO)
    bank.decide(purchases.there(order), dispute, is_won=True)
    look(order)
    assert money.state(account) == (600 * MICRO, 0, 0)
    assert money.problems() == []


def test_a_dispute_that_is_lost_stays(account, order):
    dispute = bank.dispute(purchases.there(order))
    look(order)
    bank.decide(purchases.there(order), dispute, is_won=False)
    look(order)
    look(order)
    assert money.state(account) == (0, 0, 0)
    assert status(account) == "frozen"
    assert Dispute.objects.get().status == "lost"
    assert told() == ["Parley: A payment is disputed", "Parley: A dispute was lost"]


def test_a_dispute_that_was_won_before_we_heard_of_it_changes_nothing(account, order):
    dispute = bank.dispute(purchases.there(order))
    bank.decide(purchases.there(order), dispute, is_won=True)
    look(order)
    assert money.state(account) == (FULL, 0, 0)
    assert status(account) == "active"
    assert LedgerEntry.objects.count() == 2


def test_an_older_answer_does_not_undo_a_victory(account, order):
    dispute = bank.dispute(purchases.there(order))
    older = bank.SandboxProvider().fetch(order)
    bank.decide(purchases.there(order), dispute, is_won=True)
    look(order)
    money_transaction(checkout.apply_state, order.pk, older)
    assert money.state(account) == (FULL, 0, 0)
    assert status(account) == "active"


def test_an_inquiry_takes_nothing(account, order):
    bank.dispute(purchases.there(order))
    there = purchases.payment(order)
    there.disputes[0]["funds_withdrawn"] = False
    there.save()
    look(order)
    assert money.state(account) == (FULL, 0, 0)
    assert status(account) == "active"
    assert Dispute.objects.get().funds_withdrawn is False


def test_a_part_of_a_payment_takes_a_part_of_the_credits(account, order):
    bank.dispute(purchases.there(order), 100)
    look(order)
    assert money.state(account) == (FULL * 4 // 5, 0, 0)


def test_the_account_stays_frozen_until_the_last_dispute_is_won(account):
    orders = [purchases.paid(account), purchases.paid(account)]
    disputes = [bank.dispute(purchases.there(order)) for order in orders]
    for order in orders:
        look(order)
    for order, dispute, expected in zip(orders, disputes, ["frozen", "active"], strict=True):
        bank.decide(purchases.there(order), dispute, is_won=True)
        look(order)
        assert status(account) == expected
    assert money.state(account) == (2 * FULL, 0, 0)
    assert money.problems() == []


def test_whom_staff_froze_a_won_dispute_does_not_set_free(account, order):
    money_transaction(postings.set_status, account_id=account.pk, status=Account.Status.FROZEN)
    dispute = bank.dispute(purchases.there(order))
    look(order)
    bank.decide(purchases.there(order), dispute, is_won=True)
    look(order)
    assert status(account) == "frozen"
    assert money.state(account) == (FULL, 0, 0)


def test_refund_and_dispute_of_the_same_money_are_both_owed(account, order):
    """A buyer who got the money back twice owes its credits twice."""
    bank.refund_there(purchases.there(order), 300)
    bank.dispute(purchases.there(order), 300)
    look(order)
    assert money.state(account) == (0, 0, FULL // 5)
    assert money.problems() == []


@pytest.fixture(params=["stripe", "razorpay"])
def provider(request, fakepay) -> str:
    fakepay.postman.receiver = purchases.receive
    return str(request.param)


@pytest.mark.parametrize("ending", ["win", "lose"])
def test_a_dispute_at_a_real_provider(account, fakepay, provider, ending):
    currency = "USD" if provider == "stripe" else "INR"
    made = purchases.begun(account, provider=provider, currency=currency)
    side = getattr(fakepay, provider)
    payment_id = side.pay(made.provider_order_id)
    fakepay.postman.switches.copies = 2
    fakepay.postman.switches.shuffle = True
    fakepay.postman.flush()
    purchases.work()
    use(account, 100 * MICRO)
    dispute = side.open_dispute(payment_id)
    side.withdraw(dispute)
    fakepay.postman.flush()
    purchases.work()
    assert money.state(account) == (0, 0, 100 * MICRO)
    assert status(account) == "frozen"
    getattr(side, ending)(dispute)
    fakepay.postman.flush()
    purchases.work()
    if ending == "win":
        assert money.state(account) == (1000 * MICRO, 0, 0)
        assert status(account) == "active"
    else:
        assert money.state(account) == (0, 0, 100 * MICRO)
        assert status(account) == "frozen"
    assert money.problems() == []
