"""Orders from the form to the credits, at the test bank and with the real adapters."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import partial

import pytest
from django.core import mail
from django.core.management import CommandError, call_command
from django.db import OperationalError, connection
from django.utils import timezone

from billing import queue
from billing.credits import MICRO
from billing.ledger import postings
from billing.models import Account, CreditLot, LedgerEntry, Order, SandboxPayment
from billing.payments import checkout, poller
from billing.payments.checkout import CheckoutRefused
from billing.payments.providers import sandbox as bank
from billing.payments.providers.base import ProviderError
from chatproject.lib.db import limits, money_transaction
from tests.support import money, purchases
from tests.support.fakepay import Switches
from tests.support.threads import race

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("sandbox")]

FULL = 1100 * MICRO


def receipts() -> list[str]:
    return [str(message.subject) for message in mail.outbox if "Receipt" in message.subject]


# --- Making an order ---------------------------------------------------------------------------


def test_order_takes_its_terms_from_the_database(account):
    made = purchases.order(account, return_to="/c/1/?draft=2")
    assert (made.credits, made.bonus) == (1000 * MICRO, 100 * MICRO)
    assert (made.amount_minor, made.currency) == (500, "USD")
    assert (made.status, made.livemode, made.return_to) == ("created", False, "/c/1/?draft=2")


@pytest.mark.parametrize(
    "path", ["https://evil.example/", "//evil.example/", "/\\evil.example", "x"]
)
def test_order_drops_a_foreign_return_path(account, path):
    assert purchases.order(account, return_to=path).return_to == ""


def test_double_click_makes_one_order(account):
    package = purchases.package()
    made = purchases.at_once(12, lambda: purchases.order(account, package, client_key="a"))
    assert len({order.pk for order in made}) == 1
    assert Order.objects.count() == 1


def test_client_key_identifies_an_order_of_one_user(account):
    first = purchases.order(account, client_key="a")
    assert purchases.order(account, purchases.package(credits=5), client_key="a") == first
    assert purchases.order(money.open_account(), client_key="a") != first


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
def test_impossible_order_is_refused_with_a_reason(account, fields, words):
    with pytest.raises(CheckoutRefused, match=words):
        purchases.order(account, **fields)
    assert not Order.objects.exists()


def test_inactive_package_and_unlisted_currency_are_refused(account, settings):
    with pytest.raises(CheckoutRefused, match="no longer available"):
        purchases.order(account, purchases.package(active=False))
    settings.CURRENCIES = ["EUR"]
    with pytest.raises(CheckoutRefused, match="not available in USD"):
        purchases.order(account)


def test_frozen_account_buys_nothing(account):
    money_transaction(postings.set_status, account_id=account.pk, status=Account.Status.FROZEN)
    with pytest.raises(CheckoutRefused, match="frozen"):
        purchases.order(account)


def test_second_begin_leads_to_the_same_page(account):
    made = purchases.order(account)
    first = checkout.begin(made.pk, **purchases.URLS)
    assert checkout.begin(made.pk, **purchases.URLS) == first
    made.refresh_from_db()
    assert (made.status, made.provider_order_id) == ("pending", first.provider_order_id)
    assert first.url == f"http://testserver/billing/sandbox/{first.provider_order_id}/"


def test_paid_or_canceled_order_is_not_begun_again(paid, begun):
    with pytest.raises(CheckoutRefused, match="paid already"):
        checkout.begin(paid.pk, **purchases.URLS)
    bank.close(purchases.bank_id(begun))
    checkout.sync_order(begun.pk)
    with pytest.raises(CheckoutRefused, match="canceled"):
        checkout.begin(begun.pk, **purchases.URLS)


def test_unreachable_provider_leaves_the_order_as_created(account, fakepay):
    made = purchases.order(account, provider="stripe")
    fakepay.fault("500", "500", "500", "500", "500")
    with pytest.raises(CheckoutRefused, match="is not responding"):
        checkout.begin(made.pk, **purchases.URLS)
    made.refresh_from_db()
    assert made.status == "created"


# --- Crediting ---------------------------------------------------------------------------------


def test_paid_order_gives_its_credits_and_one_receipt(account):
    made = purchases.paid(account, purchases.package(valid_days=30))
    assert money.state(account) == (FULL, 0, 0)
    assert (made.status, made.invoice_no, made.problem) == ("paid", 1, "")
    paid, bonus = CreditLot.objects.order_by("pk")
    assert (paid.kind, paid.granted) == ("paid", 1000 * MICRO)
    assert (paid.paid_minor, paid.currency) == (500, "USD")
    assert (bonus.kind, bonus.granted, bonus.order) == ("bonus", 100 * MICRO, made)
    assert paid.expires_at == bonus.expires_at == made.paid_at + timedelta(days=30)
    keys = LedgerEntry.objects.order_by("seq").values_list("idempotency_key", flat=True)
    assert list(keys) == [f"purchase:{made.pk}", f"purchase:{made.pk}:bonus"]
    purchases.work()
    [receipt] = mail.outbox
    assert receipt.to == [account.user.email]
    assert receipt.subject == "Parley: Receipt 000001"
    assert "1,000 credits + 100 bonus" in receipt.body
    assert "USD 5.00" in receipt.body
    assert f"https://parley.example.org/billing/orders/{made.pk}/" in receipt.body
    assert money.problems() == []


def test_fifty_concurrent_syncs_credit_once(account, uncredited):
    purchases.at_once(50, lambda: checkout.sync_order(uncredited.pk))
    purchases.work()
    assert money.state(account) == (FULL, 0, 0)
    assert LedgerEntry.objects.count() == 2
    assert len(receipts()) == 1
    assert money.problems() == []


def test_receipts_are_numbered_without_gaps(account):
    package = purchases.package()
    orders = [purchases.begun(account, package) for _ in range(8)]
    for made in orders:
        bank.pay(purchases.bank_id(made))
    race([partial(checkout.sync_order, made.pk) for made in orders])
    numbers = Order.objects.values_list("invoice_no", flat=True)
    assert set(numbers) == set(range(1, 9))


def test_without_queue_the_receipt_is_mailed_directly(uncredited, queue_server):
    queue_server.stop()
    checkout.sync_order(uncredited.pk)
    assert len(receipts()) == 1


def grow_old(payment_id: str) -> None:
    """Let an order wait for its payment longer than it may."""
    Order.objects.update(created_at=timezone.now() - timedelta(hours=73))


@pytest.mark.parametrize(
    ("end", "status"), [(bank.decline, "failed"), (bank.close, "canceled"), (grow_old, "canceled")]
)
def test_late_money_for_an_ended_order_counts(account, begun, end, status):
    end(purchases.bank_id(begun))
    assert checkout.sync_order(begun.pk).status == status
    assert money.state(account) == (0, 0, 0)
    bank.pay(purchases.bank_id(begun))
    assert checkout.sync_order(begun.pk).status == "paid"
    assert money.state(account) == (FULL, 0, 0)


@pytest.mark.parametrize("status", ["open", "failed", "closed"])
def test_paid_order_stays_paid(account, paid, status):
    purchases.change_payment(paid, status=status)
    assert checkout.sync_order(paid.pk).status == "paid"
    assert money.state(account) == (FULL, 0, 0)


@contextmanager
def failing_at(number: int) -> Iterator[None]:
    """Lose the connection to the database at the n-th statement."""
    count = 0

    def wrapper(execute, sql, params, many, context):
        nonlocal count
        count += 1
        if count == number:
            raise OperationalError("the connection was lost")
        return execute(sql, params, many, context)

    with connection.execute_wrapper(wrapper):
        yield


def test_database_failure_at_any_statement_credits_once(account, uncredited):
    for statement in itertools.count(1):
        with failing_at(statement), suppress(OperationalError):
            checkout.sync_order(uncredited.pk)
            break
        assert money.state(account) == (0, 0, 0)
    assert statement > 10
    checkout.sync_order(uncredited.pk)
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
def test_mismatched_payment_credits_nothing_and_alerts_staff(account, uncredited, change, words):
    right = SandboxPayment.objects.values(*change).get()
    purchases.change_payment(uncredited, **change)
    for _ in range(3):
        after = checkout.sync_order(uncredited.pk)
    assert after.status == "review"
    assert words in after.problem
    assert money.state(account) == (0, 0, 0)
    assert not LedgerEntry.objects.exists()
    assert purchases.alerts() == ["Parley: A payment does not match"]
    # Once it matches, it is paid like any other.
    purchases.change_payment(uncredited, **right)
    after = checkout.sync_order(uncredited.pk)
    assert (after.status, after.problem) == ("paid", "")
    assert money.state(account) == (FULL, 0, 0)


def test_test_money_buys_no_live_order(account, uncredited):
    Order.objects.update(livemode=True)
    after = checkout.sync_order(uncredited.pk)
    assert after.status == "review"
    assert "live mode" in after.problem
    assert money.state(account) == (0, 0, 0)
    assert len(purchases.alerts()) == 1


def test_payment_pays_for_one_order_only(account, paid, uncredited):
    purchases.change_payment(paid, payment_id=None)
    purchases.change_payment(uncredited, payment_id=paid.provider_payment_id)
    after = checkout.sync_order(uncredited.pk)
    assert after.status == "review"
    assert "belongs to another order" in after.problem
    assert money.state(account) == (FULL, 0, 0)


def test_second_payment_of_an_order_alerts_staff(account, paid):
    purchases.change_payment(paid, payment_id="sbxpay_other")
    after = checkout.sync_order(paid.pk)
    assert (after.status, len(purchases.alerts())) == ("paid", 1)
    assert money.state(account) == (FULL, 0, 0)


# --- Without webhooks --------------------------------------------------------------------------


def test_poller_syncs_open_orders_at_set_ages(begun):
    asked = []
    hours = [hour * 60 + minute for hour in (24, 72) for minute in range(-15, 20, 5)]
    for minutes in (
        *range(0, 90, 5),
        *range(120, 60 * 23, 180),
        *hours[:7],
        60 * 48,
        *hours[7:],
        60 * 96,
    ):
        poller.poll(begun.created_at + timedelta(minutes=minutes))
        if queue._queue().count:
            asked.append(minutes)
            queue._queue().empty()
    assert asked == [5, 10, 60, 60 * 24, 60 * 72]


def test_order_is_found_without_its_providers_id(account, uncredited):
    """The provider made it, but its answer was lost."""
    Order.objects.update(provider_order_id=None, status="created")
    after = checkout.sync_order(uncredited.pk)
    assert after.provider_order_id == uncredited.provider_order_id
    assert money.state(account) == (FULL, 0, 0)


def test_reconcile_payments_credits_without_a_webhook(account, uncredited, capsys):
    other = purchases.begun(account)
    call_command("reconcile_payments")
    assert capsys.readouterr().out.splitlines() == [
        f"{uncredited.pk}: pending is now paid",
        "2 orders checked, 1 changed, 0 failed.",
    ]
    Order.objects.filter(pk=other.pk).update(provider_order_id="sbx_unknown")
    with pytest.raises(CommandError):
        call_command("reconcile_payments")
    with pytest.raises(ProviderError):
        checkout.sync_order(other.pk)


# --- The real adapters against fakepay ---------------------------------------------------------


def test_shuffled_copies_of_webhooks_credit_once(account, fakepay, side, provider_order):
    payment_id = side.pay(provider_order.provider_order_id)
    fakepay.postman.switches = Switches(copies=5, shuffle=True)
    assert purchases.flush(fakepay) == {200}
    provider_order.refresh_from_db()
    assert (provider_order.status, provider_order.provider_payment_id) == ("paid", payment_id)
    assert money.state(account) == (FULL, 0, 0)
    assert len(receipts()) == 1
    assert money.problems() == []


def test_poller_credits_when_all_webhooks_are_lost(account, fakepay, side, provider_order):
    side.pay(provider_order.provider_order_id)
    fakepay.postman.switches.drop = True
    assert purchases.flush(fakepay) == set()
    poller.poll(timezone.now() + timedelta(minutes=3))
    purchases.work()
    assert money.state(account) == (FULL, 0, 0)


@pytest.fixture
def at_stripe(account, fakepay) -> Order:
    """An order whose buyer is at Stripe's page."""
    return purchases.begun(account, provider="stripe")


def test_page_paid_in_another_window_leads_back(account, fakepay, at_stripe):
    fakepay.stripe.pay(at_stripe.provider_order_id)
    page = checkout.begin(at_stripe.pk, **purchases.URLS)
    assert page.url == purchases.URLS["return_url"]
    checkout.sync_order(at_stripe.pk)
    with pytest.raises(CheckoutRefused, match="paid already"):
        checkout.begin(at_stripe.pk, **purchases.URLS)
    assert money.state(account) == (FULL, 0, 0)


def test_expired_page_is_not_opened_again(fakepay, at_stripe):
    fakepay.stripe.expire(at_stripe.provider_order_id)
    with pytest.raises(CheckoutRefused, match="Nothing was charged"):
        checkout.begin(at_stripe.pk, **purchases.URLS)
    at_stripe.refresh_from_db()
    assert at_stripe.status == "canceled"


def test_webhook_finds_an_order_without_providers_id(fakepay, at_stripe):
    """The answer to making it was lost; the webhook names the session to fetch."""
    fakepay.stripe.pay(at_stripe.provider_order_id)
    Order.objects.update(provider_order_id=None, status="created")
    purchases.flush(fakepay)
    after = Order.objects.get()
    assert (after.status, after.provider_order_id) == ("paid", at_stripe.provider_order_id)


def test_second_card_pays_after_a_declined_one(account, fakepay, side, provider_order):
    side.fail(provider_order.provider_order_id)
    purchases.flush(fakepay)
    provider_order.refresh_from_db()
    assert not provider_order.is_paid
    side.pay(provider_order.provider_order_id)
    purchases.flush(fakepay)
    assert money.state(account) == (FULL, 0, 0)


def test_false_amount_in_a_webhook_changes_nothing(account, fakepay, side, provider_order):
    side.pay(provider_order.provider_order_id)
    fakepay.postman.switches.lie_amount = 1_000_000
    purchases.flush(fakepay)
    assert money.state(account) == (FULL, 0, 0)  # the amount is the API's, not the webhook's
    assert money.problems() == []


def test_page_of_a_silent_provider_answers_in_time(account, fakepay, provider):
    order = purchases.order(account, provider=provider)
    fakepay.fault("hang", "hang", "hang")
    began = time.monotonic()
    with limits.page(), pytest.raises(CheckoutRefused, match="not responding"):
        checkout.begin(order.pk, **purchases.URLS)
    assert time.monotonic() - began < 10
