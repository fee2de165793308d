"""Promises that the adapters of Stripe and Razorpay share, against both fake providers."""

from __future__ import annotations

import re

import pytest

from billing.models import Refund
from billing.payments import providers
from billing.payments.providers import base, razorpay, stripe
from billing.payments.providers.base import (
    DisputeState,
    ProviderDeclined,
    ProviderError,
    RefundState,
    Standing,
)
from tests.support import purchases
from tests.support.fakepay import unsaved

pytestmark = pytest.mark.django_db


@pytest.fixture
def adapter(fakepay, provider):
    return providers.get(provider)


@pytest.fixture
def order(adapter, provider):
    """An order with its payment page."""
    order = unsaved.order(provider)
    order.provider_order_id = adapter.create_checkout(order, **purchases.URLS).provider_order_id
    return order


@pytest.fixture
def paid_order(order, side):
    order.provider_payment_id = side.pay(order.provider_order_id)
    return order


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(stripe, "RETRIES", 0)
    monkeypatch.setattr(stripe, "TIMEOUT", (1, 0.3))
    monkeypatch.setattr(razorpay, "TIMEOUT", (1, 0.3))


# --- Orders -----------------------------------------------------------------------------------


def test_paid_order_is_not_paid_again(adapter, paid_order):
    back = base.Checkout(paid_order.provider_order_id, purchases.URLS["return_url"])
    assert adapter.create_checkout(paid_order, **purchases.URLS) == back


RECEIPTS = {"stripe": r"https://.*/invoice/in_\w+", "razorpay": ""}


def test_paid_order_is_read_completely(adapter, provider, paid_order):
    state = adapter.fetch(paid_order)
    assert state == base.OrderState(
        standing=Standing.PAID,
        provider_order_id=paid_order.provider_order_id,
        amount_minor=500,
        currency=paid_order.currency,
        livemode=False,
        order_id=str(paid_order.id),
        user_id=str(paid_order.user_id),
        payment_id=paid_order.provider_payment_id,
        payment_order_id=str(paid_order.id),
        receipt_url=state.receipt_url,
    )
    assert re.fullmatch(RECEIPTS[provider], state.receipt_url)


def test_late_payment_is_open_until_it_settles(adapter, side, order):
    side.pay_late(order.provider_order_id)
    assert adapter.fetch(order).standing is Standing.OPEN
    side.settle_late(order.provider_order_id)
    assert adapter.fetch(order).standing is Standing.PAID


# --- Refunds and disputes ---------------------------------------------------------------------


def test_refund_is_made_once_without_its_key(adapter, side, paid_order):
    """Providers forget idempotency keys after a day."""
    refund = unsaved.refund(paid_order, 200)
    first = adapter.refund(paid_order, refund)
    side.replays.forget()
    assert adapter.refund(paid_order, refund) == first
    assert first == RefundState(first.id, 200, Refund.Status.SUCCEEDED, str(refund.id))
    assert adapter.fetch(paid_order).refunds == (first,)


def test_refund_is_made_once_while_lists_lag(adapter, side, paid_order):
    side.lists_lag = True
    refund = unsaved.refund(paid_order, 200)
    assert adapter.refund(paid_order, refund) == adapter.refund(paid_order, refund)


def test_refund_is_made_once_after_a_lost_answer(adapter, fakepay, paid_order, impatient):
    refund = unsaved.refund(paid_order, 200)
    fakepay.fault("", "cut")  # the list, then the refund
    with pytest.raises(ProviderError):
        adapter.refund(paid_order, refund)
    adapter.refund(paid_order, refund)
    assert [state.amount_minor for state in adapter.fetch(paid_order).refunds] == [200]


def test_refund_of_an_unpaid_order_is_declined(adapter, order):
    with pytest.raises(ProviderDeclined):
        adapter.refund(order, unsaved.refund(order, 1))


@pytest.mark.parametrize(
    ("provider", "theirs", "ours"),
    [
        ("stripe", "pending", Refund.Status.PENDING),
        ("stripe", "requires_action", Refund.Status.PENDING),
        ("stripe", "succeeded", Refund.Status.SUCCEEDED),
        ("stripe", "failed", Refund.Status.FAILED),
        ("stripe", "canceled", Refund.Status.FAILED),
        ("razorpay", "pending", Refund.Status.PENDING),
        ("razorpay", "processed", Refund.Status.SUCCEEDED),
        ("razorpay", "failed", Refund.Status.FAILED),
    ],
    indirect=["provider"],
)
def test_refund_status_is_translated(adapter, side, paid_order, theirs, ours):
    refund_id = side.refund(paid_order.provider_payment_id, 100)
    side.refunds[refund_id]["status"] = theirs
    assert adapter.fetch(paid_order).refunds == (RefundState(refund_id, 100, ours),)


@pytest.mark.parametrize(
    ("end", "status", "is_withdrawn"), [("win", "won", False), ("lose", "lost", True)]
)
def test_dispute_is_read_at_every_stage(adapter, side, paid_order, end, status, is_withdrawn):
    dispute_id = side.open_dispute(paid_order.provider_payment_id)
    assert adapter.fetch(paid_order).disputes == (DisputeState(dispute_id, 500, "open", False),)
    side.withdraw(dispute_id)
    assert adapter.fetch(paid_order).disputes == (DisputeState(dispute_id, 500, "open", True),)
    getattr(side, end)(dispute_id)
    [ended] = adapter.fetch(paid_order).disputes
    assert ended == DisputeState(dispute_id, 500, status, is_withdrawn)


# --- Unreachable providers --------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["500", "html", "hang", "cut"])
def test_unusable_answer_is_no_decline(adapter, fakepay, order, impatient, fault, capfd):
    fakepay.fault(fault)
    with pytest.raises(ProviderError) as raised:
        adapter.fetch(order)
    assert not isinstance(raised.value, ProviderDeclined)
    assert "<html>" not in str(raised.value)
    printed = capfd.readouterr()
    assert (printed.out, printed.err) == ("", "")
    assert adapter.fetch(order).standing is Standing.OPEN


def test_refused_connection_is_no_decline(adapter, provider, order, impatient, settings, capfd):
    setattr(settings, f"{provider.upper()}_API_BASE", "http://127.0.0.1:9")
    with pytest.raises(ProviderError, match="no answer"):
        adapter.fetch(order)
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize(
    ("provider", "stored", "field"),
    [("stripe", "sessions", "currency"), ("razorpay", "orders", "amount")],
    indirect=["provider"],
)
def test_incomplete_answer_is_no_decline(adapter, side, order, stored, field):
    del getattr(side, stored)[order.provider_order_id][field]
    with pytest.raises(ProviderError, match="cannot be read"):
        adapter.fetch(order)


@pytest.mark.parametrize(
    ("provider", "setting", "words"),
    [
        ("stripe", "STRIPE_SECRET_KEY", "AuthenticationError"),
        ("razorpay", "RAZORPAY_KEY_SECRET", "HTTP 401"),
    ],
    indirect=["provider"],
)
def test_wrong_key_is_no_decline(adapter, order, settings, setting, words):
    setattr(settings, setting, "sk_test_of_another_site")
    with pytest.raises(ProviderError, match=words) as raised:
        adapter.fetch(order)
    assert not isinstance(raised.value, ProviderDeclined)


# --- Webhooks ---------------------------------------------------------------------------------

# Whether an event names our order, the provider's order and the payment.
EVENTS = {
    "stripe": {
        "payment_intent.succeeded": (True, False, True),
        "checkout.session.completed": (True, True, True),
        "refund.created": (True, False, True),
        "charge.refunded": (True, False, True),
        "charge.dispute.created": (False, False, True),
        "charge.dispute.funds_withdrawn": (False, False, True),
        "charge.dispute.closed": (False, False, True),
        "charge.dispute.funds_reinstated": (False, False, True),
    },
    "razorpay": {
        "payment.captured": (True, True, True),
        "order.paid": (True, True, True),
        "refund.processed": (True, True, True),
        "payment.dispute.created": (True, True, True),
        "payment.dispute.under_review": (True, True, True),
        "payment.dispute.won": (True, True, True),
    },
}


def test_every_event_leads_to_its_order(adapter, fakepay, provider, side, paid_order):
    adapter.refund(paid_order, unsaved.refund(paid_order, 100))
    dispute_id = side.open_dispute(paid_order.provider_payment_id)
    side.withdraw(dispute_id)
    side.win(dispute_id)
    seen = {}

    def receive(provider, body, headers):
        notice = adapter.verify(body, headers)
        seen[notice.event_type] = (notice.order_id, notice.provider_order_id, notice.payment_id)
        return 200

    fakepay.postman.flush(receive)
    ids = (str(paid_order.id), paid_order.provider_order_id, paid_order.provider_payment_id)
    assert seen == {
        event_type: tuple(
            name if is_named else "" for name, is_named in zip(ids, named, strict=True)
        )
        for event_type, named in EVENTS[provider].items()
    }
