"""Credits that follow the money back: one target for an order, whatever came in which order."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from functools import partial

import pytest
from django.utils import timezone
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from billing import schedule
from billing.credits import MICRO
from billing.models import Account, Order, Refund
from billing.payments import checkout, providers, refunds
from billing.reports import staff_report
from tests.support import money, purchases
from tests.support.fakepay import FakePay, Switches

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("sandbox")]

FULL = 1100 * MICRO


@pytest.fixture
def paid(fakepay, side, provider_order: Order) -> Order:
    """An order of 500 that is paid at a real provider and credited."""
    side.pay(provider_order.provider_order_id)
    purchases.flush(fakepay)
    provider_order.refresh_from_db()
    return provider_order


def part(of: Order, hundredths: int) -> int:
    """Return hundredths of an order's price, in minor units."""
    return of.amount_minor * hundredths // 100


def ask(of: Order, amount: int, nonce: str) -> Refund:
    return refunds.request_refund(
        order_id=of.pk, amount_minor=amount, actor_id=None, reason="", nonce=nonce,
        initiated_by=Refund.Initiator.STAFF,
    )  # fmt: skip


def test_failed_refund_beside_another_takes_its_own_share_only(account, fakepay, side, paid):
    """A refund of 60 % fails at the bank while 80 % are refunded; one sync sees both."""
    first = side.refund(paid.provider_payment_id, part(paid, 60))
    purchases.flush(fakepay)
    assert money.state(account) == (FULL * 2 // 5, 0, 0)
    side.fail_refund(first)
    side.refund(paid.provider_payment_id, part(paid, 80))
    checkout.sync_order(paid.pk)
    assert money.state(account) == (FULL // 5, 0, 0)
    assert money.problems() == []


def test_money_returned_twice_takes_credits_once(account, fakepay, side, paid):
    side.refund(paid.provider_payment_id)
    purchases.flush(fakepay)
    side.withdraw(side.open_dispute(paid.provider_payment_id))
    for _ in range(3):
        checkout.sync_order(paid.pk)
    assert money.state(account) == (0, 0, 0)
    paid.refresh_from_db()
    assert (paid.status, paid.lost_minor) == ("refunded", paid.amount_minor)
    losses = staff_report.make(staff_report.month_of("")).losses
    assert [(loss.currency, loss.amount_minor) for loss in losses] == [
        (paid.currency, paid.amount_minor)
    ]
    purchases.work()
    assert purchases.alerts().count("Parley: More money went back than was paid") == 1
    assert money.problems() == []


@pytest.mark.parametrize("wins", [True, False])
def test_refund_after_a_dispute_ends_as_if_before(account, fakepay, side, paid, wins):
    dispute_id = side.open_dispute(paid.provider_payment_id)
    side.withdraw(dispute_id)
    checkout.sync_order(paid.pk)
    side.refund(paid.provider_payment_id, part(paid, 40))
    checkout.sync_order(paid.pk)
    assert money.state(account) == (0, 0, 0)
    getattr(side, "win" if wins else "lose")(dispute_id)
    checkout.sync_order(paid.pk)
    assert money.state(account)[0] == (FULL * 3 // 5 if wins else 0)
    paid.refresh_from_db()
    assert paid.lost_minor == (0 if wins else part(paid, 40))
    assert money.problems() == []


@pytest.mark.parametrize("change", ["withdraw", "refund"])
def test_sync_that_was_overtaken_undoes_nothing(
    account, fakepay, side, paid, provider, monkeypatch, change
):
    """A sync asks before a change, and stores the answer after another sync has stored the change."""
    dispute_id = side.open_dispute(paid.provider_payment_id)
    refund_id = side.refund(paid.provider_payment_id, part(paid, 20))
    done = side.refunds[refund_id]["status"]
    side.refunds[refund_id]["status"] = "pending"
    checkout.sync_order(paid.pk)
    adapter = type(providers.get(provider))
    fetch = adapter.fetch

    def fetch_late(self, order: Order):
        state = fetch(self, order)
        monkeypatch.setattr(adapter, "fetch", fetch)
        if change == "withdraw":
            side.withdraw(dispute_id)
        side.refunds[refund_id]["status"] = done
        checkout.sync_order(order.pk)
        return state

    monkeypatch.setattr(adapter, "fetch", fetch_late)
    checkout.sync_order(paid.pk)
    assert Refund.objects.get().status == "succeeded"
    assert money.state(account)[0] == (0 if change == "withdraw" else FULL * 4 // 5)
    account.refresh_from_db()
    assert account.status == ("frozen" if change == "withdraw" else "active")


def test_answer_that_was_overtaken_changes_nothing(paid, provider, monkeypatch):
    """The refund is still pending in the answer, and has succeeded in a sync before it."""
    adapter = type(providers.get(provider))
    send = adapter.refund

    def send_slowly(self, order: Order, refund: Refund):
        answer = send(self, order, refund)
        checkout.sync_order(order.pk)
        return replace(answer, status=Refund.Status.PENDING)

    monkeypatch.setattr(adapter, "refund", send_slowly)
    assert ask(paid, part(paid, 20), "late").status == "succeeded"
    paid.refresh_from_db()
    assert paid.status == "partially_refunded"


def test_audit_compares_money_and_credits_of_each_order(account, fakepay, side, paid):
    side.refund(paid.provider_payment_id, part(paid, 80))
    checkout.sync_order(paid.pk)
    assert money.problems() == []
    money.tamper("UPDATE billing_refund SET amount_minor = amount_minor / 2")
    assert any(problem.startswith("order_money_back") for problem in money.problems())
    money.tamper("UPDATE billing_refund SET amount_minor = amount_minor * 2, status = 'failed'")
    assert any(problem.startswith("refund") for problem in money.problems())


def test_returned_credits_keep_their_date(account, fakepay, side, provider):
    order = purchases.begun(account, purchases.package(valid_days=30), provider=provider)
    payment = side.pay(order.provider_order_id)
    checkout.sync_order(order.pk)
    refund_id = side.refund(payment)
    checkout.sync_order(order.pk)
    side.fail_refund(refund_id)
    checkout.sync_order(order.pk)
    [date] = set(account.lots.filter(kind="paid").values_list("expires_at", flat=True))
    assert date is not None
    account.refresh_from_db()
    assert account.next_expiry_at == date


def test_sync_mends_credits_of_an_earlier_release(account, fakepay, side, paid):
    """Half of a refund's credits were returned, and the other half kept by mistake."""
    side.refund(paid.provider_payment_id, part(paid, 80))
    checkout.sync_order(paid.pk)
    refund = Refund.objects.get()
    money.give_back(paid, FULL * 2 // 5, 0, key=f"refund:{refund.pk}:returned", refund=refund)
    Refund.objects.update(credits=FULL * 2 // 5, postings=0)
    assert [problem.split(":")[0] for problem in money.problems()] == ["order_money_back"]
    checkout.sync_order(paid.pk)
    assert money.state(account) == (FULL // 5, 0, 0)
    assert money.problems() == []


def test_nightly_check_has_the_order_synced(account, fakepay, side, paid):
    side.refund(paid.provider_payment_id, part(paid, 80))
    checkout.sync_order(paid.pk)
    refund = Refund.objects.get()
    money.give_back(paid, FULL * 2 // 5, 0, key=f"refund:{refund.pk}:returned", refund=refund)
    Refund.objects.update(credits=FULL * 2 // 5, postings=0)
    Order.objects.update(created_at=timezone.now() - timedelta(days=90))
    schedule.check_all(timezone.now())
    purchases.work()
    assert money.state(account) == (FULL // 5, 0, 0)


# --- Every order of events ----------------------------------------------------------------------

EVENTS = ["refund", "ask", "fail", "dispute", "withdraw", "win", "lose", "spend", "grant"]
STEPS = st.lists(
    st.tuples(st.sampled_from(EVENTS), st.integers(0, 3), st.integers(1, 100), st.booleans()),
    max_size=14,
)


@pytest.mark.parametrize("name", ["stripe", pytest.param("razorpay", marks=pytest.mark.long)])
@hypothesis_settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(steps=STEPS)
def test_end_state_depends_on_standing_money_only(sandbox, fakepay: FakePay, name, steps):
    """Credits are all that came in, less what was spent, less the share of the money that is away."""
    side = getattr(fakepay, name)
    account = money.open_account(1000)
    package = purchases.package(
        {"USD": 997, "INR": 997}, credits=777_777_777, bonus=11, slug=account.user.email[:40]
    )
    order = purchases.begun(account, package, provider=name)
    side.pay(order.provider_order_id)
    fakepay.postman.switches = Switches(copies=2, shuffle=True)
    purchases.flush(fakepay)
    payment = checkout.sync_order(order.pk).provider_payment_id
    total = order.credits + order.bonus
    free = 1000 + total  # never reclaimed
    spent = 0
    refunded: list[str] = []
    disputed: list[str] = []
    for number, (event, index, size, syncs) in enumerate(steps):
        standing = [key for key in refunded if side.refunds[key]["status"] != "failed"]
        left = 997 - sum(side.refunds[key]["amount"] for key in standing)
        if event == "refund" and left:
            refunded.append(side.refund(payment, max(1, left * size // 100)))
        elif event == "ask":
            allowed = refunds.refundable_minor(Order.objects.get(pk=order.pk))
            amount = min(allowed, left) * size // 100
            if amount:
                made = ask(order, amount, str(number))
                if made.provider_refund_id:
                    refunded.append(made.provider_refund_id)
        elif event == "fail" and standing:
            side.fail_refund(standing[index % len(standing)])
        elif event == "dispute" and not disputed:
            disputed.append(side.open_dispute(payment))
        elif event == "withdraw" and disputed and is_open(side, disputed[0]):
            side.withdraw(disputed[0])
        elif event in ("win", "lose") and disputed and is_open(side, disputed[0]):
            if event == "lose":
                side.withdraw(disputed[0])
            getattr(side, event)(disputed[0])
        elif event == "spend":
            Account.objects.filter(pk=account.pk).update(status="active")
            available = money.state(account)[0]
            amount = available * size // 100
            if amount and not account.debt:
                money.spend(account, amount)
                spent += amount
        elif event == "grant":
            money.grant(account, size)
            free += size
        if syncs:
            (
                partial(purchases.flush, fakepay)
                if index
                else partial(checkout.sync_order, order.pk)
            )()
        assert money.problems(account) == []
    purchases.flush(fakepay)
    for _ in range(2):
        checkout.sync_order(order.pk)
        known = [side.refunds[key] for key in set(refunded)]
        away = sum(refund["amount"] for refund in known if refund["status"] != "failed")
        away += sum(997 for key in disputed if is_away(side, key))
        taken = total if away >= 997 else total * away // 997
        balance, held, debt = money.state(account)
        assert (held, balance - debt, min(balance, debt)) == (0, free - spent - taken, 0)
        assert money.problems(account) == []
        order.refresh_from_db()
        assert order.lost_minor == max(0, away - 997)


def is_open(side, dispute_id: str) -> bool:
    return side.disputes[dispute_id]["status"] not in ("won", "lost")


def is_away(side, dispute_id: str) -> bool:
    """Return whether the bank holds the disputed money."""
    dispute = side.disputes[dispute_id]
    moves = dispute.get("balance_transactions")
    if moves is not None:
        return bool(dispute["status"] != "won" and sum(move["amount"] for move in moves) < 0)
    return bool(dispute["status"] != "won" and dispute["amount_deducted"] > 0)
