"""Idempotency keys: a new one after an error, the old one with its parameters after silence."""

from __future__ import annotations

import uuid
from datetime import timedelta

import pytest
from django.core import mail
from django.utils import timezone

from billing.credits import MICRO
from billing.models import Account, AutoTopUp, Order, ProviderRequest, Refund
from billing.payments import auto_top_up, checkout, poller, providers, refunds
from billing.payments.checkout import CheckoutRefused
from billing.payments.providers import razorpay, stripe
from tests.support import money, purchases

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("sandbox")]

FULL = 1100 * MICRO


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(stripe, "RETRIES", 0)
    monkeypatch.setattr(stripe, "TIMEOUT", (1, 0.5))
    monkeypatch.setattr(razorpay, "TIMEOUT", (1, 0.5))


@pytest.fixture
def paid(fakepay, side, provider_order: Order) -> Order:
    side.pay(provider_order.provider_order_id)
    return checkout.sync_order(provider_order.pk)


@pytest.fixture
def top_up(account: Account, settings, fakepay) -> AutoTopUp:
    """Consent to automatic purchases with a card that is saved at Stripe."""
    settings.AUTO_TOP_UP = True
    auto_top_up.consent(
        user_id=account.user_id, package_id=purchases.package().pk, currency="USD",
        threshold=50 * MICRO, monthly_cap_minor=5000,
    )  # fmt: skip
    AutoTopUp.objects.update(provider="stripe", customer_ref="cus_1", payment_method_ref="pm_1")
    return AutoTopUp.objects.get()


def ask_refund(of: Order, amount: int) -> Refund:
    return refunds.request_refund(
        order_id=of.pk, amount_minor=amount, actor_id=None, reason="", nonce=uuid.uuid4().hex,
        initiated_by=Refund.Initiator.STAFF,
    )  # fmt: skip


def minutes_later() -> None:
    """Let the poller ask the providers again."""
    poller.poll(timezone.now() + timedelta(minutes=3))
    purchases.work()


# --- After an error ----------------------------------------------------------------------------


def test_purchase_goes_on_after_an_error_of_stripe(account, fakepay):
    order = purchases.order(account, provider="stripe")
    fakepay.fault("500")
    with pytest.raises(CheckoutRefused, match="not responding"):
        checkout.begin(order.pk, **purchases.URLS)
    checkout.begin(order.pk, **purchases.URLS)
    order.refresh_from_db()
    fakepay.stripe.pay(order.provider_order_id)
    checkout.sync_order(order.pk)
    assert money.state(account) == (FULL, 0, 0)


@pytest.mark.parametrize("fault", ["500", "done-500", "429", "html", "cut", "hang"])
def test_refund_is_made_once_after_any_fault(account, fakepay, side, paid, fault):
    fakepay.fault("", fault)  # the list of refunds, then the refund
    refund = ask_refund(paid, paid.amount_minor * 2 // 5)
    assert (refund.status, money.state(account)[0]) == ("pending", FULL * 3 // 5)
    for _ in range(2):
        minutes_later()
    refund.refresh_from_db()
    assert refund.status == "succeeded"
    assert [made["amount"] for made in side.refunds.values()] == [refund.amount_minor]
    assert money.state(account) == (FULL * 3 // 5, 0, 0)
    assert money.problems() == []


@pytest.mark.parametrize("fault", ["500", "done-500", "429", "html", "cut", "hang"])
def test_top_up_is_charged_once_after_any_fault(account, fakepay, top_up, fault):
    fakepay.fault("", fault)  # the list of charges, then the charge
    order = auto_top_up.check(account.pk)
    assert order.status == "created"
    for _ in range(2):
        minutes_later()
    order.refresh_from_db()
    assert order.status == "paid"
    paid = [made for made in fakepay.stripe.intents.values() if made["status"] == "succeeded"]
    assert len(paid) == 1
    assert money.state(account) == (FULL, 0, 0)


# --- After silence -----------------------------------------------------------------------------


def test_purchase_is_asked_for_unchanged_after_silence(account, fakepay, settings):
    order = purchases.order(account, provider="stripe")
    fakepay.fault("cut")
    with pytest.raises(CheckoutRefused):
        checkout.begin(order.pk, **purchases.URLS)
    settings.STRIPE_TAX = True
    checkout.begin(
        order.pk, return_url="https://b.example.org/", cancel_url="https://c.example.org/"
    )
    asked = [text for method, _, text in fakepay.requests if method == "POST"]
    assert len(asked) == 2
    assert asked[0] == asked[1]
    assert len(fakepay.stripe.sessions) == 1


def test_refund_is_asked_for_unchanged_after_silence(account, fakepay, side, paid):
    fakepay.fault("", "cut")
    side.lists_lag = True
    refund = ask_refund(paid, 100)
    Order.objects.filter(pk=paid.pk).update(package_name="Renamed")
    Refund.objects.filter(pk=refund.pk).update(reason="Another reason")
    assert refunds.send(refund.pk).status == "succeeded"
    asked = [
        text for method, path, text in fakepay.requests if "POST" in method and "refund" in path
    ]
    assert len(asked) == 2
    assert asked[0] == asked[1]
    assert len(side.refunds) == 1


def test_top_up_is_charged_to_the_card_first_named(account, fakepay, top_up):
    fakepay.fault("", "cut")
    fakepay.stripe.lists_lag = True
    order = auto_top_up.check(account.pk)
    AutoTopUp.objects.update(payment_method_ref="pm_2")
    assert auto_top_up.charge(order.pk).status == "paid"
    assert len(fakepay.stripe.intents) == 1


@pytest.mark.parametrize("fault", ["done-500", "cut"])
def test_lost_charge_is_credited_after_withdrawal(account, fakepay, top_up, fault):
    fakepay.fault("", fault)
    order = auto_top_up.check(account.pk)
    auto_top_up.withdraw(account.user_id)
    assert auto_top_up.charge(order.pk).status == "paid"
    assert money.state(account) == (FULL, 0, 0)
    assert len(fakepay.stripe.intents) == 1
    assert money.problems() == []


@pytest.mark.parametrize("fault", ["done-500", "cut"])
def test_webhook_of_a_lost_charge_adds_its_credits(account, fakepay, top_up, fault):
    fakepay.fault("", fault)
    order = auto_top_up.check(account.pk)
    auto_top_up.withdraw(account.user_id)
    purchases.flush(fakepay)
    order.refresh_from_db()
    assert order.status == "paid"
    assert money.state(account) == (FULL, 0, 0)


def test_lost_charge_of_another_customer_is_not_repeated(account, fakepay, top_up):
    fakepay.fault("", "done-500")
    order = auto_top_up.check(account.pk)
    AutoTopUp.objects.update(customer_ref="cus_2", payment_method_ref="pm_2")
    assert auto_top_up.charge(order.pk).status == "paid"
    assert len(fakepay.stripe.intents) == 1


def test_lost_refusal_is_mailed_with_its_reason(account, fakepay, top_up):
    """The bank requires a confirmation, and the webhook comes before the answer."""
    fakepay.stripe.declined_methods["pm_1"] = "authentication_required"
    fakepay.fault("", "cut")
    order = auto_top_up.check(account.pk)
    purchases.flush(fakepay)
    order.refresh_from_db()
    assert order.status == "failed"
    assert any("confirm" in str(message.body) for message in mail.outbox)


def test_request_stored_before_a_crash_is_sent_as_stored(fakepay, side, paid, monkeypatch):
    """A process is killed after the request was stored, before it was sent."""
    refund = Refund.objects.create(order=paid, amount_minor=100, initiated_by="staff")

    class Killed(BaseException):
        pass

    def kill(*args, **options):
        raise Killed

    adapter = providers.get(paid.provider)
    target = (
        "stripe.RequestsClient.request" if paid.provider == "stripe" else "requests.Session.post"
    )
    with monkeypatch.context() as patched:
        patched.setattr(adapter, "_refunds", kill, raising=False)
        patched.setattr(target, kill)
        patched.setattr("billing.payments.providers.stripe._refunds", lambda *args: ())
        patched.setattr("billing.payments.providers.razorpay._refunds", lambda *args: ())
        with pytest.raises(Killed):
            adapter.refund(paid, refund)
    [stored] = ProviderRequest.objects.filter(subject__startswith="refund")
    assert stored.closed_at is None
    refund.amount_minor = 200
    adapter.refund(paid, refund)
    [made] = side.refunds.values()
    assert made["amount"] == 100


def test_key_is_closed_by_an_error_only(fakepay, side, paid):
    fakepay.fault("", "429", "", "html", "", "cut", "", "500")
    side.lists_lag = True
    refund = ask_refund(paid, 100)
    for _ in range(3):
        assert ProviderRequest.objects.get(subject__startswith="refund").closed_at is None
        if refunds.send(refund.pk).status == "succeeded":
            break
    assert len(side.refunds) == 1


def test_fakes_repeat_answers_for_a_day(fakepay, side, paid):
    fakepay.fault("", "500")
    refund = ask_refund(paid, 100)
    ProviderRequest.objects.update(closed_at=None)
    assert refunds.send(refund.pk).status == "pending"
    ProviderRequest.objects.filter(number=1).update(closed_at=None)
    side.replays.later = 24 * 3600
    assert refunds.send(refund.pk).status == "succeeded"
