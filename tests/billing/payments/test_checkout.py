from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta

import pytest
from django.core import mail
from django.core.management import CommandError, call_command
from django.db import OperationalError, connection
from django.utils import timezone

from billing import queue
from billing.credits import MICRO
from billing.ledger import postings
from billing.models import Account, CreditLot, LedgerEntry, Order
from billing.payments import checkout, poller
from billing.payments.checkout import CheckoutRefused
from billing.payments.providers import sandbox as bank
from billing.payments.providers.base import ProviderError
from chatproject.lib.db import money_transaction
from chatproject.lib.redis.clients import sync_client
from tests.support import money, purchases

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("sandbox")]

FULL = 1100 * MICRO


def alerts() -> list[str]:
    return [str(message.subject) for message in mail.outbox if message.to == ["staff@example.org"]]


def receipts() -> list[str]:
    return [str(message.subject) for message in mail.outbox if "Receipt" in message.subject]


# --- Making an order ---------------------------------------------------------------------------


def test_an_order_holds_what_the_database_says(account):
    made = purchases.order(account, return_to="/c/1/?draft=2")
    assert (made.credits, made.bonus, made.amount_minor, made.currency) == (
        1000 * MICRO,
        100 * MICRO,
        500,
        "USD",
    )
    assert (made.status, made.livemode, made.return_to) == ("created", False, "/c/1/?draft=2")


@pytest.mark.parametrize(
    "path", ["https://evil.example/", "//evil.example/", "/\\evil.example", "x"]
)
def test_the_page_to_go_back_to_is_one_of_ours(account, path):
    assert purchases.order(account, return_to=path).return_to == ""


def test_a_double_click_makes_one_order(account):
    package = purchases.package()
    made = purchases.at_once(12, lambda: purchases.order(account, package, client_key="a"))
    assert len({order.pk for order in made}) == 1
    assert Order.objects.count() == 1


def test_the_same_key_with_another_package_finds_the_first_order(account):
    first = purchases.order(account, client_key="a")
    second = purchases.order(account, purchases.package(credits=5), client_key="a")
    assert second == first


def test_another_users_key_is_another_order(account):
    first = purchases.order(account, client_key="a")
    second = purchases.order(money.open_account(), client_key="a")
    assert second != first


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"currency": "JPY"}, "not available in JPY"),
        ({"package_id": 0}, "no longer available"),
        ({"provider": "stripe"}, "payment method"),
        ({"provider": "nobody"}, "payment method"),
        ({"client_key": ""}, "Reload"),
        ({"client_key": "x" * 65}, "Reload"),
    ],
)
def test_what_is_not_offered_is_refused_in_words(account, fields, words):
    with pytest.raises(CheckoutRefused, match=words):
        purchases.order(account, **fields)
    assert not Order.objects.exists()


def test_an_inactive_package_and_a_currency_of_elsewhere_are_refused(account, settings):
    with pytest.raises(CheckoutRefused, match="no longer available"):
        purchases.order(account, purchases.package(active=False))
    settings.CURRENCIES = ["EUR"]
    with pytest.raises(CheckoutRefused, match="not available in USD"):
        purchases.order(account)


def test_a_frozen_account_buys_nothing(account):
    money_transaction(postings.set_status, account_id=account.pk, status=Account.Status.FROZEN)
    with pytest.raises(CheckoutRefused, match="frozen"):
        purchases.order(account)


def test_the_buyer_is_sent_to_the_bank_and_again_to_the_same_page(account):
    made = purchases.order(account)
    urls = {"return_url": purchases.RETURN_URL, "cancel_url": purchases.CANCEL_URL}
    first = checkout.begin(made.pk, **urls)
    second = checkout.begin(made.pk, **urls)
    assert first == second
    made.refresh_from_db()
    assert (made.status, made.provider_order_id) == ("pending", first.provider_order_id)
    assert first.url == f"http://testserver/billing/sandbox/{first.provider_order_id}/"


def test_a_paid_or_canceled_order_is_not_begun_again(account):
    urls = {"return_url": purchases.RETURN_URL, "cancel_url": purchases.CANCEL_URL}
    with pytest.raises(CheckoutRefused, match="paid already"):
        checkout.begin(purchases.paid(account).pk, **urls)
    canceled = purchases.begun(account)
    bank.close(purchases.there(canceled))
    checkout.sync_order(canceled.pk)
    with pytest.raises(CheckoutRefused, match="canceled"):
        checkout.begin(canceled.pk, **urls)


def test_a_provider_that_does_not_answer_charges_nothing(account, fakepay, settings):
    made = purchases.order(account, provider="stripe")
    fakepay.fault("500", "500", "500", "500", "500")
    urls = {"return_url": purchases.RETURN_URL, "cancel_url": purchases.CANCEL_URL}
    with pytest.raises(CheckoutRefused, match="is not responding"):
        checkout.begin(made.pk, **urls)
    made.refresh_from_db()
    assert made.status == "created"


# --- Crediting ---------------------------------------------------------------------------------


def test_a_paid_order_gives_its_credits_and_one_receipt(account):
    made = purchases.paid(account, purchases.package(valid_days=30))
    assert money.state(account) == (FULL, 0, 0)
    assert (made.status, made.invoice_no, made.problem) == ("paid", 1, "")
    paid, bonus = CreditLot.objects.order_by("pk")
    assert (paid.kind, paid.granted, paid.paid_minor, paid.currency) == (
        "paid",
        1000 * MICRO,
        500,
        "USD",
    )
    assert (bonus.kind, bonus.granted, bonus.order) == ("bonus", 100 * MICRO, made)
    assert paid.expires_at == bonus.expires_at == made.paid_at + timedelta(days=30)
    assert list(LedgerEntry.objects.order_by("seq").values_list("idempotency_key", flat=True)) == [
        f"purchase:{made.pk}",
        f"purchase:{made.pk}:bonus",
    ]
    purchases.work()
    [receipt] = mail.outbox
    assert receipt.to == [account.user.email]
    assert receipt.subject == "Parley: Receipt 000001"
    assert "1,000 credits + 100 bonus" in receipt.body
    assert "USD 5.00" in receipt.body
    assert f"https://parley.example.org/billing/orders/{made.pk}/" in receipt.body
    assert money.problems() == []


def test_fifty_at_once_credit_one_order_once(account):
    made = purchases.begun(account)
    bank.pay(purchases.there(made))
    purchases.at_once(50, lambda: checkout.sync_order(made.pk))
    purchases.work()
    assert money.state(account) == (FULL, 0, 0)
    assert LedgerEntry.objects.count() == 2
    assert len(receipts()) == 1
    assert money.problems() == []


def test_receipts_are_numbered_without_gaps(account):
    package = purchases.package()
    orders = [purchases.begun(account, package) for _ in range(8)]
    for made in orders:
        bank.pay(purchases.there(made))
    waiting = iter(orders)
    purchases.at_once(8, lambda: checkout.sync_order(next(waiting).pk))
    numbers = Order.objects.values_list("invoice_no", flat=True)
    assert set(numbers) == set(range(1, 9))


def test_without_the_queue_the_receipt_is_mailed_at_once(account, settings, own_valkey):
    made = purchases.begun(account)
    bank.pay(purchases.there(made))
    settings.REDIS_URL = own_valkey.url
    sync_client.cache_clear()
    queue._queue.cache_clear()
    try:
        own_valkey.stop()
        checkout.sync_order(made.pk)
    finally:
        sync_client.cache_clear()
        queue._queue.cache_clear()
    assert len(receipts()) == 1


@pytest.mark.parametrize("ending", [bank.decline, bank.close])
def test_money_that_comes_after_all_counts(account, ending):
    made = purchases.begun(account)
    ending(purchases.there(made))
    assert checkout.sync_order(made.pk).status in ("failed", "canceled")
    assert money.state(account) == (0, 0, 0)
    bank.pay(purchases.there(made))
    assert checkout.sync_order(made.pk).status == "paid"
    assert money.state(account) == (FULL, 0, 0)


@pytest.mark.parametrize("status", ["open", "failed", "closed"])
def test_what_was_paid_stays_paid(account, status):
    made = purchases.paid(account)
    there = purchases.payment(made)
    there.status = status
    there.save()
    assert checkout.sync_order(made.pk).status == "paid"
    assert money.state(account) == (FULL, 0, 0)


@contextmanager
def failing_at(number: int) -> Iterator[None]:
    """The database goes away at the n-th statement."""
    count = 0

    def wrapper(execute, sql, params, many, context):
        nonlocal count
        count += 1
        if count == number:
            raise OperationalError("the connection was lost")
        return execute(sql, params, many, context)

    with connection.execute_wrapper(wrapper):
        yield


def test_wherever_the_database_goes_away_the_next_try_credits_once(account):
    made = purchases.begun(account)
    bank.pay(purchases.there(made))
    failures = 0
    while money.state(account)[0] == 0:
        failures += 1
        with failing_at(failures), suppress(OperationalError):
            checkout.sync_order(made.pk)
            break
        assert money.state(account) == (0, 0, 0)
    assert failures > 10
    checkout.sync_order(made.pk)
    purchases.work()
    assert money.state(account) == (FULL, 0, 0)
    assert (Order.objects.get().invoice_no, len(receipts())) == (1, 1)
    assert money.problems() == []


# --- What does not match -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"amount_minor": 1}, "the amount"),
        ({"currency": "INR"}, "the currency"),
        ({"user_id": 0}, "the buyer"),
        ({"order_id": "00000000-0000-0000-0000-000000000000"}, "our order"),
    ],
)
def test_a_payment_that_does_not_match_credits_nothing_and_calls_staff(account, change, words):
    made = purchases.begun(account)
    bank.pay(purchases.there(made))
    there = purchases.payment(made)
    right = {name: getattr(there, name) for name in change}
    for name, value in change.items():
        setattr(there, name, value)
    there.save()
    for _ in range(3):
        after = checkout.sync_order(made.pk)
    assert after.status == "review"
    assert words in after.problem
    assert money.state(account) == (0, 0, 0)
    assert not LedgerEntry.objects.exists()
    assert alerts() == ["Parley: A payment does not match"]
    # Once it matches, it is paid like any other.
    for name, value in right.items():
        setattr(there, name, value)
    there.save()
    after = checkout.sync_order(made.pk)
    assert (after.status, after.problem) == ("paid", "")
    assert money.state(account) == (FULL, 0, 0)


def test_test_money_buys_no_live_order(account):
    made = purchases.begun(account)
    bank.pay(purchases.there(made))
    Order.objects.update(livemode=True)
    after = checkout.sync_order(made.pk)
    assert after.status == "review"
    assert "live mode" in after.problem
    assert money.state(account) == (0, 0, 0)
    assert len(alerts()) == 1


def test_a_payment_pays_for_one_order_only(account):
    first = purchases.paid(account)
    second = purchases.begun(account)
    bank.pay(purchases.there(second))
    payment_id = purchases.payment(first).payment_id
    there = purchases.payment(first)
    there.payment_id = None
    there.save()
    there = purchases.payment(second)
    there.payment_id = payment_id
    there.save()
    after = checkout.sync_order(second.pk)
    assert after.status == "review"
    assert "belongs to another order" in after.problem
    assert money.state(account) == (FULL, 0, 0)


def test_a_second_payment_of_a_paid_order_calls_staff_and_changes_nothing(account):
    made = purchases.paid(account)
    there = purchases.payment(made)
    there.payment_id = "sbxpay_other"
    there.save()
    after = checkout.sync_order(made.pk)
    assert (after.status, len(alerts())) == ("paid", 1)
    assert money.state(account) == (FULL, 0, 0)


# --- Without webhooks --------------------------------------------------------------------------


def test_the_poller_asks_about_open_orders_at_their_ages(account):
    made = purchases.begun(account)
    start = made.created_at
    asked = []
    for minutes in range(0, 60 * 24 * 4, 5):
        poller.poll(start + timedelta(minutes=minutes))
        if queue._queue().count:
            asked.append(minutes)
            queue._queue().empty()
    assert asked == [5, 10, 60, 60 * 24, 60 * 72]


def test_an_order_whose_webhooks_are_lost_is_credited_by_the_poller(account):
    made = purchases.begun(account)
    bank.pay(purchases.there(made))
    poller.poll(timezone.now() + timedelta(minutes=3))
    purchases.work()
    made.refresh_from_db()
    assert made.status == "paid"
    assert money.state(account) == (FULL, 0, 0)


def test_an_order_that_nobody_pays_is_given_up_but_may_be_paid_later(account):
    made = purchases.begun(account)
    Order.objects.update(created_at=timezone.now() - timedelta(hours=73))
    assert checkout.sync_order(made.pk).status == "canceled"
    bank.pay(purchases.there(made))
    assert checkout.sync_order(made.pk).status == "paid"


def test_an_order_that_lost_the_answer_to_its_making_is_found(account):
    made = purchases.begun(account)
    Order.objects.update(provider_order_id=None, status="created")
    bank.pay(purchases.there(made))
    assert checkout.sync_order(made.pk).provider_order_id == made.provider_order_id
    assert money.state(account) == (FULL, 0, 0)


def test_reconcile_payments_credits_what_no_webhook_told(account, capsys):
    made = purchases.begun(account)
    other = purchases.begun(account)
    bank.pay(purchases.there(made))
    call_command("reconcile_payments")
    assert capsys.readouterr().out.splitlines() == [
        f"{made.pk}: pending is now paid",
        "2 orders checked, 1 changed, 0 failed.",
    ]
    Order.objects.filter(pk=other.pk).update(provider_order_id="sbx_unknown")
    with pytest.raises(CommandError):
        call_command("reconcile_payments")
    with pytest.raises(ProviderError):
        checkout.sync_order(other.pk)


# --- The real adapters against fakepay ---------------------------------------------------------


@pytest.fixture(params=["stripe", "razorpay"])
def provider(request, fakepay) -> str:
    fakepay.postman.receiver = purchases.receive
    return str(request.param)


def buy_there(account: Account, provider: str) -> Order:
    return purchases.begun(
        account, provider=provider, currency="USD" if provider == "stripe" else "INR"
    )


def test_buying_with_five_shuffled_copies_of_each_webhook(account, fakepay, provider):
    made = buy_there(account, provider)
    payment_id = getattr(fakepay, provider).pay(made.provider_order_id)
    fakepay.postman.switches.copies = 5
    fakepay.postman.switches.shuffle = True
    assert set(fakepay.postman.flush()) == {200}
    purchases.work()
    made.refresh_from_db()
    assert (made.status, made.provider_payment_id) == ("paid", payment_id)
    assert money.state(account) == (FULL, 0, 0)
    assert len(receipts()) == 1
    assert money.problems() == []


def test_buying_with_all_webhooks_lost(account, fakepay, provider):
    made = buy_there(account, provider)
    getattr(fakepay, provider).pay(made.provider_order_id)
    fakepay.postman.switches.drop = True
    assert fakepay.postman.flush() == []
    poller.poll(timezone.now() + timedelta(minutes=3))
    purchases.work()
    assert money.state(account) == (FULL, 0, 0)


def test_a_page_that_was_paid_in_another_window_leads_back_at_once(account, fakepay):
    made = buy_there(account, "stripe")
    fakepay.stripe.pay(made.provider_order_id)
    urls = {"return_url": purchases.RETURN_URL, "cancel_url": purchases.CANCEL_URL}
    assert checkout.begin(made.pk, **urls).url == purchases.RETURN_URL
    checkout.sync_order(made.pk)
    with pytest.raises(CheckoutRefused, match="paid already"):
        checkout.begin(made.pk, **urls)
    assert money.state(account) == (FULL, 0, 0)


def test_a_page_that_expired_is_not_opened_again(account, fakepay):
    made = buy_there(account, "stripe")
    fakepay.stripe.expire(made.provider_order_id)
    urls = {"return_url": purchases.RETURN_URL, "cancel_url": purchases.CANCEL_URL}
    with pytest.raises(CheckoutRefused, match="Nothing was charged"):
        checkout.begin(made.pk, **urls)
    made.refresh_from_db()
    assert made.status == "canceled"


def test_an_order_and_its_event_that_found_no_order_id_are_brought_together(account, fakepay):
    """The answer to making it was lost; the webhook names what is to be asked about."""
    made = buy_there(account, "stripe")
    fakepay.stripe.pay(made.provider_order_id)
    Order.objects.update(provider_order_id=None, status="created")
    fakepay.postman.receiver = purchases.receive
    fakepay.postman.flush()
    purchases.work()
    after = Order.objects.get()
    assert (after.status, after.provider_order_id) == ("paid", made.provider_order_id)


def test_a_declined_card_and_then_another_one(account, fakepay, provider):
    made = buy_there(account, provider)
    side = getattr(fakepay, provider)
    side.fail(made.provider_order_id)
    fakepay.postman.flush()
    purchases.work()
    made.refresh_from_db()
    assert not made.is_paid
    side.pay(made.provider_order_id)
    fakepay.postman.flush()
    purchases.work()
    assert money.state(account) == (FULL, 0, 0)


def test_an_event_that_lies_about_its_amount_changes_nothing(account, fakepay, provider):
    made = buy_there(account, provider)
    getattr(fakepay, provider).pay(made.provider_order_id)
    fakepay.postman.switches.lie_amount = 1_000_000
    fakepay.postman.flush()
    purchases.work()
    assert money.state(account) == (FULL, 0, 0)  # the provider was asked, and says 500
    assert money.problems() == []
