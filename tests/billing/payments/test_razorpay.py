"""The adapter of Razorpay beyond the shared contract: orders, receipts and signatures."""

from __future__ import annotations

import hashlib
import json

import pytest

from billing.payments.providers import base
from billing.payments.providers import razorpay as adapter
from billing.payments.providers.base import (
    BadSignature,
    ProviderDeclined,
    ProviderError,
    Standing,
)
from tests.support import purchases
from tests.support.fakepay import unsaved
from tests.support.fakepay.postman import RAZORPAY_SECRET, razorpay_event
from tests.support.fakepay.postman import sign_for_razorpay as sign
from tests.support.fakepay.razorpay_side import KEY_ID, KEY_SECRET

pytestmark = pytest.mark.django_db

razorpay = adapter.RazorpayProvider()


@pytest.fixture
def order(fakepay):
    """An order that Razorpay has."""
    order = unsaved.order("razorpay")
    order.provider_order_id = razorpay.create_checkout(order, **purchases.URLS).provider_order_id
    return order


@pytest.fixture
def paid_order(fakepay, order):
    order.provider_payment_id = fakepay.razorpay.pay(order.provider_order_id)
    return order


# --- Buying -----------------------------------------------------------------------------------


def test_page_is_reached_by_a_form(fakepay):
    made = razorpay.create_checkout(unsaved.order("razorpay"), **purchases.URLS)
    assert made.url == f"{fakepay.url}/v1/checkout/embedded"
    assert made.fields == {
        "key_id": KEY_ID,
        "order_id": made.provider_order_id,
        "amount": "500",
        "currency": "INR",
        "name": "Parley",
        "description": "1,000 credits",
        "callback_url": purchases.URLS["return_url"],
        "cancel_url": purchases.URLS["cancel_url"],
    }
    assert KEY_SECRET not in made.fields.values()


def test_order_request_is_complete(fakepay, order):
    method, path, body = fakepay.requests[-1]
    sent = json.loads(body)
    assert (method, path) == ("POST", "/v1/orders")
    assert (sent["amount"], sent["currency"], sent["receipt"]) == (500, "INR", str(order.id))
    assert sent["notes"] == {"order_id": str(order.id), "user_id": str(order.user_id)}
    assert sent["payment"]["capture"] == "automatic"


def test_order_is_made_once_after_a_lost_answer(fakepay):
    order = unsaved.order("razorpay")
    fakepay.fault("", "cut")  # the search, then the order
    with pytest.raises(ProviderError):
        razorpay.create_checkout(order, **purchases.URLS)
    made = razorpay.create_checkout(order, **purchases.URLS)
    assert razorpay.create_checkout(order, **purchases.URLS) == made
    assert list(fakepay.razorpay.orders) == [made.provider_order_id]


# --- The state of an order --------------------------------------------------------------------


def test_order_unknown_to_razorpay_is_open(fakepay):
    state = razorpay.fetch(unsaved.order("razorpay"))
    assert (state.standing, state.provider_order_id) == (Standing.OPEN, "")


def test_order_without_its_id_is_found(fakepay, order):
    known, order.provider_order_id = order.provider_order_id, None
    assert razorpay.fetch(order).provider_order_id == known


def test_failed_payment_may_still_succeed(fakepay, order):
    fakepay.razorpay.fail(order.provider_order_id)
    state = razorpay.fetch(order)
    assert (state.standing, state.payment_id) == (Standing.FAILED, None)
    assert state.problem == "Your payment was declined by the bank."
    fakepay.razorpay.settle_late(order.provider_order_id)
    assert razorpay.fetch(order).standing is Standing.PAID


def test_second_payment_succeeds_after_a_failed_one(fakepay, order):
    fakepay.razorpay.fail(order.provider_order_id)
    payment_id = fakepay.razorpay.pay(order.provider_order_id)
    state = razorpay.fetch(order)
    assert (state.standing, state.problem, state.payment_id) == (Standing.PAID, "", payment_id)


def test_buyers_fee_is_no_part_of_the_amount(fakepay, paid_order):
    fakepay.razorpay.payments[paid_order.provider_payment_id]["amount"] = 512
    assert razorpay.fetch(paid_order).amount_minor == 500


def test_order_is_reported_unchanged(fakepay, paid_order):
    """billing.payments.checkout decides whether it matches our order."""
    fakepay.razorpay.orders[paid_order.provider_order_id].update(amount_paid=1, notes=[])
    fakepay.razorpay.payments[paid_order.provider_payment_id]["currency"] = "USD"
    state = razorpay.fetch(paid_order)
    assert (state.amount_minor, state.currency) == (1, "USD")
    assert (state.order_id, state.user_id) == ("", "")


def test_mode_is_that_of_the_key(settings):
    settings.RAZORPAY_KEY_ID = "rzp_live_x"
    body = json.dumps(EVENT).encode()
    settings.RAZORPAY_WEBHOOK_SECRETS = [RAZORPAY_SECRET]
    assert check(body, sign(body, RAZORPAY_SECRET)).livemode is True
    assert adapter.RazorpayProvider().livemode is True


# --- Refunds and disputes ---------------------------------------------------------------------


def test_fully_refunded_order_stays_paid(fakepay, paid_order):
    fakepay.razorpay.refund(paid_order.provider_payment_id)
    state = razorpay.fetch(paid_order)
    assert (state.standing, state.amount_minor) == (Standing.PAID, 500)
    assert [refund.reference for refund in state.refunds] == [""]


def test_refund_beyond_the_payment_is_declined(fakepay, paid_order):
    with pytest.raises(ProviderDeclined, match="greater") as declined:
        razorpay.refund(paid_order, unsaved.refund(paid_order, 501))
    assert declined.value.code == "BAD_REQUEST_ERROR"


@pytest.mark.parametrize(("deducted", "status"), [(0, "won"), (500, "lost")])
def test_closed_dispute_without_deduction_is_won(fakepay, paid_order, deducted, status):
    dispute_id = fakepay.razorpay.open_dispute(paid_order.provider_payment_id)
    fakepay.razorpay.disputes[dispute_id].update(status="closed", amount_deducted=deducted)
    [dispute] = razorpay.fetch(paid_order).disputes
    assert (dispute.status, dispute.funds_withdrawn) == (status, bool(deducted))


def test_disputes_are_found_among_many(fakepay, paid_order, monkeypatch):
    monkeypatch.setattr(adapter, "PAGE", 2)
    ours = fakepay.razorpay.open_dispute(paid_order.provider_payment_id)
    for _ in range(4):
        other = fakepay.razorpay.open_dispute(paid_order.provider_payment_id)
        fakepay.razorpay.disputes[other]["payment_id"] = "pay_of_another_order"
    assert [dispute.id for dispute in razorpay.fetch(paid_order).disputes] == [ours]


def test_account_without_access_to_disputes_sells(fakepay, paid_order, caplog):
    fakepay.razorpay.can_list_disputes = False
    assert razorpay.fetch(paid_order).standing is Standing.PAID
    assert "list disputes" in caplog.text


def test_nothing_is_charged_without_the_buyer(fakepay, order):
    with pytest.raises(ProviderDeclined, match="not possible"):
        razorpay.charge_saved(order, unsaved.top_up())


def test_library_does_not_repeat_an_order(fakepay):
    fakepay.fault("", "500")
    with pytest.raises(ProviderError):
        razorpay.create_checkout(unsaved.order("razorpay"), **purchases.URLS)
    assert [request[0] for request in fakepay.requests] == ["GET", "POST"]


# --- Webhooks ---------------------------------------------------------------------------------

EVENT = razorpay_event("payment.captured", payment={"id": "pay_1", "order_id": "order_1"})
BODY = json.dumps(EVENT).encode()


def check(body: bytes, signature: str | None, **headers: str):
    if signature is not None:
        headers["X-Razorpay-Signature"] = signature
    return razorpay.verify(body, headers)


def event_body(**changes) -> bytes:
    return json.dumps({**EVENT, **changes}).encode()


def test_signed_event_is_read(fakepay):
    signature = sign(BODY, RAZORPAY_SECRET)
    notice = razorpay.verify(
        BODY, {"x-razorpay-signature": signature, "x-razorpay-event-id": "evt_1"}
    )
    assert notice == base.Notice(
        event_id="evt_1",
        event_type="payment.captured",
        livemode=False,
        provider_order_id="order_1",
        payment_id="pay_1",
        body_sha256=hashlib.sha256(BODY).hexdigest(),
    )


def test_event_without_id_is_named_by_its_body(fakepay):
    notice = check(BODY, sign(BODY, RAZORPAY_SECRET))
    assert notice.event_id == notice.body_sha256 == hashlib.sha256(BODY).hexdigest()


def test_old_and_new_secrets_are_accepted(fakepay, settings):
    settings.RAZORPAY_WEBHOOK_SECRETS = ["new", "old"]
    for secret in settings.RAZORPAY_WEBHOOK_SECRETS:
        assert check(BODY, sign(BODY, secret)).payment_id == "pay_1"


BAD_SIGNATURES = {
    "none": None,
    "empty": "",
    "garbage": "garbage",
    "another secret": sign(BODY, "another"),
    "the secret of the API": sign(BODY, KEY_SECRET),
    "another body": sign(BODY + b" ", RAZORPAY_SECRET),
    "capitals": sign(BODY, RAZORPAY_SECRET).upper(),
    "not ASCII": "é" * 64,
}


@pytest.mark.parametrize("signature", BAD_SIGNATURES.values(), ids=BAD_SIGNATURES)
def test_bad_signature_is_refused(fakepay, signature):
    with pytest.raises(BadSignature):
        check(BODY, signature)


def test_without_a_secret_no_event_is_accepted(fakepay, settings):
    settings.RAZORPAY_WEBHOOK_SECRETS = []
    with pytest.raises(BadSignature):
        check(BODY, sign(BODY, ""))


BAD_BODIES = {
    "not text": b"\xff\xfe" + BODY,
    "not JSON": b"not JSON",
    "nothing": b"",
    "a list": b"[]",
    "a number": b"1",
    "null": b"null",
    "deep": b"[" * 100_000,
    "no event": event_body(entity="payment"),
    "no type": event_body(event=None),
    "a type that Postgres refuses": event_body(event="payment\0"),
}


@pytest.mark.parametrize("body", BAD_BODIES.values(), ids=BAD_BODIES)
def test_signed_body_without_an_event_is_refused(fakepay, body):
    with pytest.raises(BadSignature):
        check(body, sign(body, RAZORPAY_SECRET))


@pytest.mark.parametrize("payload", [None, [], "x", {}, {"payment": None}, {"payment": []}])
def test_event_about_nothing_is_read(fakepay, payload):
    body = event_body(payload=payload)
    notice = check(body, sign(body, RAZORPAY_SECRET))
    assert (notice.order_id, notice.provider_order_id, notice.payment_id) == ("", "", "")


@pytest.mark.parametrize("event_id", ["x" * 256, "evt\0", ""])
def test_event_id_unfit_for_storage_is_replaced(fakepay, event_id):
    headers = {"X-Razorpay-Event-Id": event_id}
    notice = check(BODY, sign(BODY, RAZORPAY_SECRET), **headers)
    assert notice.event_id == notice.body_sha256
