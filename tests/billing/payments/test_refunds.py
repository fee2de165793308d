from __future__ import annotations

import uuid
from collections.abc import Callable
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


def use(account: Account, amount: int) -> None:
    money.settle(money.hold(account, amount), amount)


def of(order: Order) -> tuple[str, int]:
    order.refresh_from_db()
    return order.status, order.amount_refunded_minor


# --- Refunds of ours ---------------------------------------------------------------------------


def test_a_full_refund_takes_all_credits_and_sends_all_money(account):
    order = purchases.paid(account)
    refund = request(order)
    assert (refund.status, refund.amount_minor, refund.credits, refund.debt) == (
        "succeeded",
        500,
        FULL,
        0,
    )
    assert of(order) == ("refunded", 500)
    assert money.state(account) == (0, 0, 0)
    assert purchases.payment(order).refunded_minor == 500
    purchases.work()
    [message] = [message for message in mail.outbox if "refund" in message.subject]
    assert "USD 5.00" in message.body
    assert "1,100 credits were removed" in message.body
    assert money.problems() == []


def test_a_refund_in_parts_takes_the_credits_of_each_part(account):
    order = purchases.paid(account)
    request(order, 100)
    assert of(order) == ("partially_refunded", 100)
    assert money.state(account) == (FULL * 4 // 5, 0, 0)
    request(order, 400)
    assert of(order) == ("refunded", 500)
    assert money.state(account) == (0, 0, 0)
    with pytest.raises(RefundRefused):
        request(order, 1)
    assert money.problems() == []


def test_parts_that_do_not_divide_add_up_to_everything(account):
    package = purchases.package(credits=100, bonus=0)  # micro-credits
    package.prices.filter(currency="USD").update(amount_minor=3)
    order = purchases.paid(account, package)
    for left in (67, 34, 0):
        request(order, 1)
        assert money.state(account) == (left, 0, 0)
    assert of(order) == ("refunded", 3)
    assert money.problems() == []


def test_only_what_unused_credits_are_worth_is_refunded(account):
    order = purchases.paid(account)
    use(account, 440 * MICRO)
    assert refunds.refundable_minor(order) == 300
    with pytest.raises(RefundRefused, match=r"USD 3\.00"):
        request(order, 301)
    with pytest.raises(RefundRefused):
        request(order, 0)
    assert request(order).amount_minor == 300
    assert money.state(account) == (0, 0, 0)
    assert refunds.refundable_minor(order) == 0
    assert money.problems() == []


def test_what_a_hold_needs_is_not_refunded(account):
    order = purchases.paid(account)
    held = money.hold(account, 660 * MICRO)
    assert request(order).amount_minor == 200
    assert money.state(account) == (660 * MICRO, 660 * MICRO, 0)
    money.settle(held, 660 * MICRO)
    assert money.problems() == []


def test_credits_of_elsewhere_are_not_what_a_purchase_gave(account):
    order = purchases.paid(account)
    use(account, FULL)
    money.grant(account, FULL)
    with pytest.raises(RefundRefused):
        request(order)
    assert not Refund.objects.exists()


def test_a_double_click_refunds_once(account):
    order = purchases.paid(account)
    made = purchases.at_once(8, lambda: request(order, 100, nonce="the-same"))
    assert len({refund.pk for refund in made}) == 1
    assert purchases.payment(order).refunded_minor == 100
    assert money.state(account) == (FULL * 4 // 5, 0, 0)


def test_refunds_asked_for_at_once_never_exceed_the_price(account):
    order = purchases.paid(account)

    def attempt() -> int:
        try:
            return request(order, 200).amount_minor
        except RefundRefused:
            return 0

    assert sorted(purchases.at_once(8, attempt)) == [0] * 6 + [200, 200]
    assert of(order) == ("partially_refunded", 400)
    assert money.state(account) == (FULL // 5, 0, 0)
    assert money.problems() == []


def test_a_refund_and_a_run_that_want_the_same_credits_are_never_both_served(account):
    for _ in range(5):
        order = purchases.paid(account)
        before = money.state(account)[0]
        calls: list[Callable[[], object]] = [
            partial(request, order),
            partial(money.hold, account, before),
        ]
        results = purchases.at_once(2, partial(attempt_one, calls))
        assert sorted(results) == [False, True]
        assert money.state(account)[2] == 0
        if money.state(account)[1]:
            [held] = account.holds.filter(status="active")
            money.settle(held, before)
    assert money.problems() == []


def attempt_one(calls: list[Callable[[], object]]) -> bool:
    try:
        calls.pop()()
    except (RefundRefused, postings.InsufficientCredits):
        return False
    return True


def test_a_provider_that_says_no_gives_the_credits_back(account):
    order = purchases.paid(account)
    there = purchases.payment(order)
    there.refunded_minor = 500  # it has sent everything back, it says
    there.save()
    refund = request(order)
    assert (refund.status, refund.error) == ("failed", "The amount is more than can be refunded.")
    assert of(order) == ("paid", 0)
    assert money.state(account) == (FULL, 0, 0)
    assert money.problems() == []
    there.refunded_minor = 0
    there.save()
    assert request(order).status == "succeeded"
    assert money.state(account) == (0, 0, 0)
    assert money.problems() == []


def test_while_the_fate_of_a_refund_is_unknown_the_credits_are_gone_and_the_poller_asks(account):
    order = purchases.paid(account)
    there = purchases.payment(order)
    SandboxPayment.objects.all().delete()  # the bank does not answer
    refund = request(order)
    assert refund.status == "pending"
    assert of(order) == ("paid", 0)
    assert money.state(account) == (0, 0, 0)
    there.save(force_insert=True)
    queue._queue().empty()
    poller.poll(timezone.now() + timedelta(minutes=1))
    assert queue._queue().count == 0
    poller.poll(timezone.now() + timedelta(minutes=3))
    purchases.work()
    refund.refresh_from_db()
    assert (refund.status, refund.error) == ("succeeded", "")
    assert of(order) == ("refunded", 500)
    assert purchases.payment(order).refunded_minor == 500
    assert money.problems() == []


def test_a_refund_whose_answer_was_lost_is_found_and_not_sent_again(account):
    order = purchases.paid(account)
    refund = request(order, 200)
    # As after a crash between the provider's answer and our COMMIT.
    Refund.objects.update(status="requested", provider_refund_id=None)
    Order.objects.update(status="paid", amount_refunded_minor=0)
    jobs.ask_refund(str(refund.pk))
    refund.refresh_from_db()
    assert (refund.status, refund.credits) == ("succeeded", FULL * 2 // 5)
    assert purchases.payment(order).refunded_minor == 200
    assert money.state(account) == (FULL * 3 // 5, 0, 0)
    assert money.problems() == []


def test_a_refund_that_fails_at_the_bank_days_later_returns_the_credits(account):
    order = purchases.paid(account)
    refund = request(order)
    bank.change_refund(purchases.there(order), str(refund.provider_refund_id), "failed")
    for _ in range(2):
        checkout.sync_order(order.pk)
    assert of(order) == ("paid", 0)
    assert money.state(account) == (FULL, 0, 0)
    bank.change_refund(purchases.there(order), str(refund.provider_refund_id), "succeeded")
    checkout.sync_order(order.pk)  # an older answer
    assert of(order) == ("paid", 0)
    assert money.problems() == []


# --- By the buyer ------------------------------------------------------------------------------


def test_a_buyer_takes_an_unused_purchase_back(account):
    order = purchases.paid(account)
    use(account, FULL // 10)
    assert refunds.eligible(order) == ""
    refund = request(order, initiated_by=USER)
    assert (refund.status, refund.amount_minor) == ("succeeded", 450)
    order.refresh_from_db()
    assert "paid purchase" in refunds.eligible(order)
    with pytest.raises(RefundRefused):
        request(order, initiated_by=USER)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda order, account, settings: use(account, FULL // 10 + 1), "More than 10 %"),
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
                bank.dispute(purchases.there(order)),
                checkout.sync_order(order.pk),
            ),
            "bank",
        ),
    ],
)
def test_what_a_buyer_may_not_take_back_is_refused_in_words(account, settings, change, words):
    order = purchases.paid(account)
    change(order, account, settings)
    order.refresh_from_db()
    with pytest.raises(RefundRefused, match=words):
        request(order, initiated_by=USER)


def test_an_order_that_was_not_paid_is_not_refunded(account):
    order = purchases.begun(account)
    assert refunds.eligible(order)
    assert refunds.refundable_minor(order) == 0
    with pytest.raises(RefundRefused, match="Only a paid purchase"):
        request(order)


# --- Made at the provider ----------------------------------------------------------------------


def test_a_refund_made_in_the_dashboard_takes_its_credits_once(account):
    order = purchases.paid(account)
    bank.refund_there(purchases.there(order), 200)
    purchases.at_once(10, lambda: checkout.sync_order(order.pk))
    assert of(order) == ("partially_refunded", 200)
    assert money.state(account) == (FULL * 3 // 5, 0, 0)
    [refund] = Refund.objects.all()
    assert (refund.initiated_by, refund.status) == ("provider", "succeeded")
    assert [m.subject for m in mail.outbox if m.to == ["staff@example.org"]] == [
        "Parley: A refund was made"
    ]
    assert money.problems() == []


def test_credits_that_were_spent_become_debt_which_the_next_purchase_pays(account):
    order = purchases.paid(account)
    use(account, 1000 * MICRO)
    bank.refund_there(purchases.there(order), 500)
    checkout.sync_order(order.pk)
    assert money.state(account) == (0, 0, 1000 * MICRO)
    with pytest.raises(postings.AccountInDebt):
        money.hold(account, 1)
    purchases.paid(account)
    assert money.state(account) == (100 * MICRO, 0, 0)
    assert money.problems() == []


def test_what_expired_unused_is_no_debt(account):
    order = purchases.paid(account, purchases.package(valid_days=1))
    use(account, 100 * MICRO)
    past = timezone.now() - timedelta(hours=1)
    CreditLot.objects.update(expires_at=past)
    Account.objects.update(next_expiry_at=past)
    money_transaction(postings.expire, account_id=account.pk)
    bank.refund_there(purchases.there(order), 500)
    checkout.sync_order(order.pk)
    assert money.state(account) == (0, 0, 100 * MICRO)
    assert money.problems() == []


def test_a_refund_that_failed_there_before_we_saw_it_takes_nothing(account):
    order = purchases.paid(account)
    bank.refund_there(purchases.there(order), 200, status="failed")
    checkout.sync_order(order.pk)
    assert of(order) == ("paid", 0)
    assert money.state(account) == (FULL, 0, 0)
    assert not LedgerEntry.objects.filter(kind="refund").exists()


def test_a_failed_refund_of_spent_credits_forgives_the_debt(account):
    order = purchases.paid(account)
    use(account, 1000 * MICRO)
    refund_id = bank.refund_there(purchases.there(order), 500, status="pending")
    checkout.sync_order(order.pk)
    assert money.state(account) == (0, 0, 1000 * MICRO)
    bank.change_refund(purchases.there(order), refund_id, "failed")
    checkout.sync_order(order.pk)
    assert money.state(account) == (100 * MICRO, 0, 0)
    assert of(order) == ("paid", 0)
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
def test_what_is_taken_follows_the_sum_of_the_money(sandbox, parts, looks, spent):
    """The target is cumulative: a share for each event would lose a part of a micro-credit."""
    account = money.open_account()
    before = money.state(account)[0]
    package = purchases.package(credits=777_777_777, bonus=11)
    order = purchases.paid(account, package)
    total = order.credits + order.bonus
    spent = min(spent, total)
    if spent:
        use(account, spent)
    sent = 0
    for part, times in zip(parts, looks, strict=False):
        if sent + part > 500:
            break
        bank.refund_there(purchases.there(order), part)
        sent += part
        for _ in range(times):
            checkout.sync_order(order.pk)
    checkout.sync_order(order.pk)
    balance, held, debt = money.state(account)
    assert (held, balance - debt) == (0, before + total - spent - total * sent // 500)
    assert min(balance, debt) == 0
    assert money.problems(account) == []


# --- The real adapters against fakepay ---------------------------------------------------------


@pytest.fixture(params=["stripe", "razorpay"])
def provider(request, fakepay) -> str:
    fakepay.postman.receiver = purchases.receive
    return str(request.param)


def paid_there(account: Account, fakepay, provider: str) -> Order:
    currency = "USD" if provider == "stripe" else "INR"
    order = purchases.begun(account, provider=provider, currency=currency)
    getattr(fakepay, provider).pay(order.provider_order_id)
    fakepay.postman.flush()
    purchases.work()
    order.refresh_from_db()
    assert order.is_paid
    return order


def test_our_refund_and_its_webhooks_take_the_credits_once(account, fakepay, provider):
    order = paid_there(account, fakepay, provider)
    refund = request(order, order.amount_minor * 2 // 5)
    assert refund.status in ("succeeded", "pending")
    fakepay.postman.switches.copies = 3
    fakepay.postman.switches.shuffle = True
    fakepay.postman.flush()
    purchases.work()
    assert money.state(account) == (FULL * 3 // 5, 0, 0)
    assert Refund.objects.count() == 1
    assert money.problems() == []


def test_dashboard_refunds_with_doubled_and_shuffled_webhooks(account, fakepay, provider):
    order = paid_there(account, fakepay, provider)
    side = getattr(fakepay, provider)
    for _ in range(3):
        side.refund(order.provider_payment_id, order.amount_minor // 5)
    fakepay.postman.switches.copies = 3
    fakepay.postman.switches.shuffle = True
    assert set(fakepay.postman.flush()) == {200}
    purchases.work()
    assert of(order) == ("partially_refunded", order.amount_minor * 3 // 5)
    assert money.state(account) == (FULL * 2 // 5, 0, 0)
    assert money.problems() == []


def test_a_refund_that_the_provider_takes_back_returns_the_credits(account, fakepay, provider):
    order = paid_there(account, fakepay, provider)
    refund = request(order)
    getattr(fakepay, provider).fail_refund(refund.provider_refund_id)
    fakepay.postman.flush()
    purchases.work()
    assert of(order) == ("paid", 0)
    assert money.state(account) == (FULL, 0, 0)
    assert money.problems() == []
