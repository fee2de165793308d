"""Refunds: by staff, by the buyer and at the provider, with the credits that go with the money."""

from __future__ import annotations

import uuid
from datetime import timedelta
from functools import partial

import pytest
from django.core import mail
from django.utils import timezone
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from billing import jobs, queue
from billing.credits import MICRO
from billing.ledger import postings
from billing.models import Account, CreditLot, LedgerEntry, Order, Refund, SandboxPayment
from billing.payments import checkout, poller, refunds
from billing.payments.providers import sandbox as bank
from billing.payments.refunds import RefundRefused
from chatproject.lib.db import money_transaction
from tests.support import money, purchases
from tests.support.fakepay import Switches
from tests.support.threads import race

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("sandbox")]

FULL = 1100 * MICRO
USER, STAFF = Refund.Initiator.USER, Refund.Initiator.STAFF


def request(of: Order, amount: int | None = None, **fields) -> Refund:
    return refunds.request_refund(
        **{
            "order_id": of.pk,
            "amount_minor": amount,
            "actor_id": of.user_id,
            "reason": "Not needed",
            "initiated_by": STAFF,
            "nonce": uuid.uuid4().hex,
            **fields,
        }
    )


def standing(order: Order) -> tuple[str, int]:
    """Return an order's status and the amount that was refunded, in minor units."""
    order.refresh_from_db()
    return order.status, order.amount_refunded_minor


# --- Refunds of ours ---------------------------------------------------------------------------


def test_full_refund_takes_all_credits(account, paid):
    refund = request(paid)
    assert (refund.status, refund.amount_minor) == ("succeeded", 500)
    assert (refund.credits, refund.debt) == (FULL, 0)
    assert standing(paid) == ("refunded", 500)
    assert money.state(account) == (0, 0, 0)
    assert purchases.payment(paid).refunded_minor == 500
    purchases.work()
    [message] = [message for message in mail.outbox if "refund" in message.subject]
    assert "USD 5.00" in message.body
    assert "1,100 credits were removed" in message.body
    assert money.problems() == []


def test_partial_refunds_take_their_shares_of_credits(account, paid):
    request(paid, 100)
    assert standing(paid) == ("partially_refunded", 100)
    assert money.state(account) == (FULL * 4 // 5, 0, 0)
    request(paid, 400)
    assert standing(paid) == ("refunded", 500)
    assert money.state(account) == (0, 0, 0)
    with pytest.raises(RefundRefused):
        request(paid, 1)
    assert money.problems() == []


def test_uneven_partial_refunds_add_up_to_everything(account):
    # In micro-credits and cents.
    order = purchases.paid(account, purchases.package({"USD": 3}, credits=100, bonus=0))
    for left in (67, 34, 0):
        request(order, 1)
        assert money.state(account) == (left, 0, 0)
    assert standing(order) == ("refunded", 3)
    assert money.problems() == []


def test_refund_is_limited_to_unused_credits(account, paid):
    money.spend(account, 440 * MICRO)
    assert refunds.refundable_minor(paid) == 300
    with pytest.raises(RefundRefused, match=r"USD 3\.00"):
        request(paid, 301)
    with pytest.raises(RefundRefused):
        request(paid, 0)
    assert request(paid).amount_minor == 300
    assert money.state(account) == (0, 0, 0)
    assert refunds.refundable_minor(paid) == 0
    assert money.problems() == []


def test_held_credits_are_not_refunded(account, paid):
    held = money.hold(account, 660 * MICRO)
    assert request(paid).amount_minor == 200
    assert money.state(account) == (660 * MICRO, 660 * MICRO, 0)
    money.settle(held, 660 * MICRO)
    assert money.problems() == []


def test_credits_from_elsewhere_make_no_purchase_refundable(account, paid):
    money.spend(account, FULL)
    money.grant(account, FULL)
    with pytest.raises(RefundRefused):
        request(paid)
    assert not Refund.objects.exists()


def test_double_click_refunds_once(account, paid):
    made = purchases.at_once(8, lambda: request(paid, 100, nonce="the-same"))
    assert len({refund.pk for refund in made}) == 1
    assert purchases.payment(paid).refunded_minor == 100
    assert money.state(account) == (FULL * 4 // 5, 0, 0)


def test_concurrent_refunds_never_exceed_the_price(account, paid):
    results = race([lambda: request(paid, 200)] * 8)
    assert [made.amount_minor for made in results if isinstance(made, Refund)] == [200, 200]
    assert [isinstance(made, RefundRefused) for made in results].count(True) == 6
    assert standing(paid) == ("partially_refunded", 400)
    assert money.state(account) == (FULL // 5, 0, 0)
    assert money.problems() == []


def test_same_credits_are_never_both_refunded_and_held(account):
    for _ in range(5):
        order = purchases.paid(account)
        before = money.state(account)[0]
        results = race([partial(request, order), partial(money.hold, account, before)])
        [refused] = [result for result in results if isinstance(result, Exception)]
        assert isinstance(refused, RefundRefused | postings.InsufficientCredits)
        assert money.state(account)[2] == 0
        if money.state(account)[1]:
            [held] = account.holds.filter(status="active")
            money.settle(held, before)
    assert money.problems() == []


def test_declined_refund_returns_the_credits(account, paid):
    purchases.change_payment(paid, refunded_minor=500)  # nothing is left to refund there
    refund = request(paid)
    assert (refund.status, refund.error) == ("failed", "The amount is more than can be refunded.")
    assert standing(paid) == ("paid", 0)
    assert money.state(account) == (FULL, 0, 0)
    assert money.problems() == []
    purchases.change_payment(paid, refunded_minor=0)
    assert request(paid).status == "succeeded"
    assert money.state(account) == (0, 0, 0)
    assert money.problems() == []


def test_poller_syncs_a_refund_of_unknown_fate(account, paid):
    """Its credits stay taken until the provider answers."""
    payment = purchases.payment(paid)
    SandboxPayment.objects.all().delete()  # the bank does not find it
    refund = request(paid)
    assert refund.status == "pending"
    assert standing(paid) == ("paid", 0)
    assert money.state(account) == (0, 0, 0)
    payment.save(force_insert=True)
    queue._queue().empty()
    poller.poll(timezone.now() + timedelta(minutes=1))
    assert queue._queue().count == 0
    poller.poll(timezone.now() + timedelta(minutes=3))
    purchases.work()
    refund.refresh_from_db()
    assert (refund.status, refund.error) == ("succeeded", "")
    assert standing(paid) == ("refunded", 500)
    assert purchases.payment(paid).refunded_minor == 500
    assert money.problems() == []


def test_refund_is_not_sent_again_after_a_crash(account, paid):
    refund = request(paid, 200)
    # As after a crash between the provider's answer and our COMMIT.
    Refund.objects.update(status="requested", provider_refund_id=None)
    Order.objects.update(status="paid", amount_refunded_minor=0)
    jobs.ask_refund(str(refund.pk))
    refund.refresh_from_db()
    assert (refund.status, refund.credits) == ("succeeded", FULL * 2 // 5)
    assert purchases.payment(paid).refunded_minor == 200
    assert money.state(account) == (FULL * 3 // 5, 0, 0)
    assert money.problems() == []


def test_refund_that_fails_days_later_returns_credits(account, paid):
    refund = request(paid)
    refund_id = str(refund.provider_refund_id)
    bank.change_refund(purchases.bank_id(paid), refund_id, "failed")
    for _ in range(2):
        checkout.sync_order(paid.pk)
    assert standing(paid) == ("paid", 0)
    assert money.state(account) == (FULL, 0, 0)
    bank.change_refund(purchases.bank_id(paid), refund_id, "succeeded")
    checkout.sync_order(paid.pk)  # an older answer
    assert standing(paid) == ("paid", 0)
    assert money.problems() == []


# --- By the buyer ------------------------------------------------------------------------------


def test_buyer_takes_an_unused_purchase_back(account, paid):
    money.spend(account, FULL // 10)
    assert refunds.eligible(paid) == ""
    refund = request(paid, initiated_by=USER)
    assert (refund.status, refund.amount_minor) == ("succeeded", 450)
    paid.refresh_from_db()
    assert "paid purchase" in refunds.eligible(paid)
    with pytest.raises(RefundRefused):
        request(paid, initiated_by=USER)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda order, account, settings: money.spend(account, FULL // 10 + 1),
            "More than 10 %",
        ),
        (lambda order, account, settings: money.hold(account, FULL // 2), "reserved"),
        (
            lambda order, account, settings: Order.objects.update(
                paid_at=timezone.now() - timedelta(days=15)
            ),
            "for 14 days",
        ),
        (lambda order, account, settings: request(order, 100), "refunded|under way|paid"),
        (lambda order, account, settings: setattr(settings, "REFUND_DAYS", 0), "staff only"),
        (
            lambda order, account, settings: money_transaction(
                postings.set_status, account_id=account.pk, status=Account.Status.FROZEN
            ),
            "review your account",
        ),
        (
            lambda order, account, settings: (
                bank.dispute(purchases.bank_id(order)),
                checkout.sync_order(order.pk),
            ),
            "bank",
        ),
    ],
)
def test_buyers_refund_is_refused_with_a_reason(account, paid, settings, change, words):
    change(paid, account, settings)
    paid.refresh_from_db()
    with pytest.raises(RefundRefused, match=words):
        request(paid, initiated_by=USER)


def test_unpaid_order_is_not_refunded(begun):
    assert refunds.eligible(begun)
    assert refunds.refundable_minor(begun) == 0
    with pytest.raises(RefundRefused, match="Only a paid purchase"):
        request(begun)


# --- Made at the provider ----------------------------------------------------------------------


def test_dashboard_refund_takes_its_credits_once(account, paid):
    bank.refund_there(purchases.bank_id(paid), 200)
    purchases.at_once(10, lambda: checkout.sync_order(paid.pk))
    assert standing(paid) == ("partially_refunded", 200)
    assert money.state(account) == (FULL * 3 // 5, 0, 0)
    [refund] = Refund.objects.all()
    assert (refund.initiated_by, refund.status) == ("provider", "succeeded")
    assert purchases.alerts() == ["Parley: A refund was made"]
    assert money.problems() == []


def test_next_purchase_pays_the_debt_of_a_refund(account, paid):
    money.spend(account, 1000 * MICRO)
    bank.refund_there(purchases.bank_id(paid), 500)
    checkout.sync_order(paid.pk)
    assert money.state(account) == (0, 0, 1000 * MICRO)
    with pytest.raises(postings.AccountInDebt):
        money.hold(account, 1)
    purchases.paid(account)
    assert money.state(account) == (100 * MICRO, 0, 0)
    assert money.problems() == []


def test_refunded_credits_already_expired_are_no_debt(account):
    order = purchases.paid(account, purchases.package(valid_days=1))
    money.spend(account, 100 * MICRO)
    past = timezone.now() - timedelta(hours=1)
    CreditLot.objects.update(expires_at=past)
    Account.objects.update(next_expiry_at=past)
    money_transaction(postings.expire, account_id=account.pk)
    bank.refund_there(purchases.bank_id(order), 500)
    checkout.sync_order(order.pk)
    assert money.state(account) == (0, 0, 100 * MICRO)
    assert money.problems() == []


def test_failed_dashboard_refund_takes_nothing(account, paid):
    bank.refund_there(purchases.bank_id(paid), 200, status="failed")
    checkout.sync_order(paid.pk)
    assert standing(paid) == ("paid", 0)
    assert money.state(account) == (FULL, 0, 0)
    assert not LedgerEntry.objects.filter(kind="refund").exists()


def test_failed_refund_of_spent_credits_cancels_debt(account, paid):
    money.spend(account, 1000 * MICRO)
    refund_id = bank.refund_there(purchases.bank_id(paid), 500, status="pending")
    checkout.sync_order(paid.pk)
    assert money.state(account) == (0, 0, 1000 * MICRO)
    bank.change_refund(purchases.bank_id(paid), refund_id, "failed")
    checkout.sync_order(paid.pk)
    assert money.state(account) == (100 * MICRO, 0, 0)
    assert standing(paid) == ("paid", 0)
    assert money.problems() == []


@hypothesis_settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    parts=st.lists(st.integers(1, 400), min_size=1, max_size=6),
    looks=st.lists(st.integers(0, 3), min_size=6, max_size=6),
    spent=st.integers(0, FULL),
)
def test_taken_credits_follow_the_total_refunded(sandbox, parts, looks, spent):
    """The target is cumulative: a share for each event would lose a part of a micro-credit."""
    account = money.open_account()
    before = money.state(account)[0]
    package = purchases.package(credits=777_777_777, bonus=11)
    order = purchases.paid(account, package)
    total = order.credits + order.bonus
    spent = min(spent, total)
    if spent:
        money.spend(account, spent)
    sent = 0
    for part, times in zip(parts, looks, strict=False):
        if sent + part > 500:
            break
        bank.refund_there(purchases.bank_id(order), part)
        sent += part
        for _ in range(times):
            checkout.sync_order(order.pk)
    checkout.sync_order(order.pk)
    balance, held, debt = money.state(account)
    assert (held, balance - debt) == (0, before + total - spent - total * sent // 500)
    assert min(balance, debt) == 0
    assert money.problems(account) == []


# --- The real adapters against fakepay ---------------------------------------------------------


@pytest.fixture
def paid_there(fakepay, side, provider_order: Order) -> Order:
    """An order that is paid at a real provider and credited."""
    side.pay(provider_order.provider_order_id)
    purchases.flush(fakepay)
    provider_order.refresh_from_db()
    assert provider_order.is_paid
    return provider_order


def test_refund_and_its_webhooks_take_credits_once(account, fakepay, paid_there):
    refund = request(paid_there, paid_there.amount_minor * 2 // 5)
    assert refund.status in ("succeeded", "pending")
    fakepay.postman.switches = Switches(copies=3, shuffle=True)
    purchases.flush(fakepay)
    assert money.state(account) == (FULL * 3 // 5, 0, 0)
    assert Refund.objects.count() == 1
    assert money.problems() == []


def test_shuffled_webhooks_of_dashboard_refunds_count_once(account, fakepay, side, paid_there):
    for _ in range(3):
        side.refund(paid_there.provider_payment_id, paid_there.amount_minor // 5)
    fakepay.postman.switches = Switches(copies=3, shuffle=True)
    assert purchases.flush(fakepay) == {200}
    assert standing(paid_there) == ("partially_refunded", paid_there.amount_minor * 3 // 5)
    assert money.state(account) == (FULL * 2 // 5, 0, 0)
    assert money.problems() == []


def test_refund_that_fails_there_returns_credits(account, fakepay, side, paid_there):
    refund = request(paid_there)
    side.fail_refund(refund.provider_refund_id)
    purchases.flush(fakepay)
    assert standing(paid_there) == ("paid", 0)
    assert money.state(account) == (FULL, 0, 0)
    assert money.problems() == []


@pytest.mark.parametrize("provider", ["stripe", "razorpay"])
def test_refund_of_three_decimals_ends_with_zero(account, fakepay, settings, provider):
    """Providers refuse thousandths; the whole rest is refunded as it was paid."""
    settings.CURRENCIES = ["KWD"]
    package = purchases.package({"KWD": 5120})
    order = purchases.begun(account, package, provider=provider, currency="KWD")
    getattr(fakepay, provider).pay(order.provider_order_id)
    order = checkout.sync_order(order.pk)
    money.spend(account, 7 * MICRO)
    assert refunds.refundable_minor(order) == 5080
    with pytest.raises(RefundRefused, match="last digit of an amount in KWD"):
        request(order, 1234)
    assert request(order).status == "succeeded"
    assert money.problems() == []


def test_every_page_of_refunds_at_razorpay_is_read(account, fakepay):
    order = purchases.begun(account, provider="razorpay")
    payment = fakepay.razorpay.pay(order.provider_order_id)
    for _ in range(205):
        fakepay.razorpay.refund(payment, 100)
    order = checkout.sync_order(order.pk)
    assert order.amount_refunded_minor == 20_500
    assert order.refunds.count() == 205
