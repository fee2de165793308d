from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

from billing.models import Refund
from billing.payments.providers import base
from billing.payments.providers import razorpay as adapter
from billing.payments.providers.base import (
    BadSignature,
    ProviderDeclined,
    ProviderError,
    RefundState,
    Standing,
)
from tests.support.fakepay import unsaved
from tests.support.fakepay.postman import RAZORPAY_SECRET, razorpay_event
from tests.support.fakepay.postman import sign_for_razorpay as sign
from tests.support.fakepay.razorpay_side import KEY_ID, KEY_SECRET

razorpay = adapter.RazorpayProvider()

URLS: dict[str, Any] = {
    "return_url": "http://localhost/billing/orders/1/return/",
    "cancel_url": "http://localhost/billing/packages/",
}


@pytest.fixture
def order(fakepay):
    """An order that Razorpay knows."""
    order = unsaved.order("razorpay", currency="INR")
    order.provider_order_id = razorpay.create_checkout(order, **URLS).provider_order_id
    return order


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(adapter, "TIMEOUT", (1, 0.3))


def paid(fakepay, order):
    order.provider_payment_id = fakepay.razorpay.pay(order.provider_order_id)
    return order


# --- Buying -----------------------------------------------------------------------------------


def test_the_page_is_reached_by_a_form(fakepay):
    order = unsaved.order("razorpay", currency="INR")
    made = razorpay.create_checkout(order, **URLS)
    assert made.url == f"{fakepay.url}/v1/checkout/embedded"
    assert made.fields == {
        "key_id": KEY_ID,
        "order_id": made.provider_order_id,
        "amount": "500",
        "currency": "INR",
        "name": "Parley",
        "description": "1,000 credits",
        "callback_url": URLS["return_url"],
        "cancel_url": URLS["cancel_url"],
    }
    assert KEY_SECRET not in made.fields.values()


def test_what_an_order_is_asked_for(fakepay, order):
    method, path, body = fakepay.requests[-1]
    sent = json.loads(body)
    assert (method, path) == ("POST", "/v1/orders")
    assert (sent["amount"], sent["currency"], sent["receipt"]) == (500, "INR", str(order.id))
    assert sent["notes"] == {"order_id": str(order.id), "user_id": str(order.user_id)}
    assert sent["payment"]["capture"] == "automatic"


def test_an_order_is_made_once_even_when_its_answer_was_lost(fakepay):
    order = unsaved.order("razorpay", currency="INR")
    fakepay.fault("", "cut")  # the search, then the order
    with pytest.raises(ProviderError):
        razorpay.create_checkout(order, **URLS)
    made = razorpay.create_checkout(order, **URLS)
    assert razorpay.create_checkout(order, **URLS) == made
    assert list(fakepay.razorpay.orders) == [made.provider_order_id]


def test_who_has_paid_is_not_asked_again(fakepay, order):
    made = razorpay.create_checkout(paid(fakepay, order), **URLS)
    assert made == base.Checkout(order.provider_order_id, URLS["return_url"])


# --- How an order stands ----------------------------------------------------------------------


def test_an_order_that_razorpay_never_heard_of_is_open(fakepay):
    state = razorpay.fetch(unsaved.order("razorpay"))
    assert (state.standing, state.provider_order_id) == (Standing.OPEN, "")


def test_an_order_whose_id_we_did_not_learn_is_found(fakepay, order):
    known, order.provider_order_id = order.provider_order_id, None
    assert razorpay.fetch(order).provider_order_id == known


def test_an_unpaid_order_is_open(fakepay, order):
    assert razorpay.fetch(order).standing is Standing.OPEN


def test_a_paid_order(fakepay, order):
    paid(fakepay, order)
    assert razorpay.fetch(order) == base.OrderState(
        standing=Standing.PAID,
        provider_order_id=order.provider_order_id,
        amount_minor=500,
        currency="INR",
        livemode=False,
        order_id=str(order.id),
        user_id=str(order.user_id),
        payment_id=order.provider_payment_id,
    )


def test_a_failed_payment_may_become_a_good_one(fakepay, order):
    fakepay.razorpay.fail(order.provider_order_id)
    state = razorpay.fetch(order)
    assert (state.standing, state.payment_id) == (Standing.FAILED, None)
    assert state.problem == "Your payment was declined by the bank."
    fakepay.razorpay.settle_late(order.provider_order_id)
    assert razorpay.fetch(order).standing is Standing.PAID


def test_a_second_try_after_a_failed_one(fakepay, order):
    fakepay.razorpay.fail(order.provider_order_id)
    paid(fakepay, order)
    state = razorpay.fetch(order)
    assert (state.standing, state.problem) == (Standing.PAID, "")
    assert state.payment_id == order.provider_payment_id


def test_a_payment_that_is_not_captured_is_not_paid(fakepay, order):
    fakepay.razorpay.pay_late(order.provider_order_id)
    assert razorpay.fetch(order).standing is Standing.OPEN
    fakepay.razorpay.settle_late(order.provider_order_id)
    assert razorpay.fetch(order).standing is Standing.PAID


def test_a_fee_that_buyers_bear_is_not_part_of_the_amount(fakepay, order):
    paid(fakepay, order)
    fakepay.razorpay.payments[order.provider_payment_id]["amount"] = 512
    assert razorpay.fetch(order).amount_minor == 500


def test_what_razorpay_says_is_told_as_it_is(fakepay, order, settings):
    """Whether it fits our order is for billing.payments.checkout to judge."""
    payment = paid(fakepay, order).provider_payment_id
    fakepay.razorpay.orders[order.provider_order_id].update(amount_paid=1, notes=[])
    fakepay.razorpay.payments[payment]["currency"] = "USD"
    state = razorpay.fetch(order)
    assert (state.amount_minor, state.currency) == (1, "USD")
    assert (state.order_id, state.user_id) == ("", "")


def test_the_key_tells_the_mode(settings):
    settings.RAZORPAY_KEY_ID = "rzp_live_x"
    body = json.dumps(EVENT).encode()
    settings.RAZORPAY_WEBHOOK_SECRETS = [RAZORPAY_SECRET]
    assert check(body, sign(body, RAZORPAY_SECRET)).livemode is True
    assert adapter.RazorpayProvider().livemode is True


# --- Refunds and disputes ---------------------------------------------------------------------


def test_a_refund_is_made_once_even_after_its_key_is_forgotten(fakepay, order):
    paid(fakepay, order)
    refund = unsaved.refund(order, 200)
    first = razorpay.refund(order, refund)
    fakepay.razorpay.replays.forget()
    assert razorpay.refund(order, refund) == first
    assert first == RefundState(first.id, 200, Refund.Status.SUCCEEDED, str(refund.id))
    assert razorpay.fetch(order).refunds == (first,)


def test_a_refund_is_made_once_while_lists_lag_behind(fakepay, order):
    paid(fakepay, order)
    fakepay.razorpay.lists_lag = True
    refund = unsaved.refund(order, 200)
    assert razorpay.refund(order, refund) == razorpay.refund(order, refund)


def test_a_refund_whose_answer_was_lost_is_made_once(fakepay, order):
    paid(fakepay, order)
    refund = unsaved.refund(order, 200)
    fakepay.fault("", "cut")  # the list, then the refund
    with pytest.raises(ProviderError):
        razorpay.refund(order, refund)
    razorpay.refund(order, refund)
    assert [state.amount_minor for state in razorpay.fetch(order).refunds] == [200]


def test_a_fully_refunded_order_was_paid(fakepay, order):
    paid(fakepay, order)
    fakepay.razorpay.refund(order.provider_payment_id)
    state = razorpay.fetch(order)
    assert (state.standing, state.amount_minor) == (Standing.PAID, 500)
    assert [refund.reference for refund in state.refunds] == [""]


def test_a_refund_of_more_than_was_paid_is_declined(fakepay, order):
    paid(fakepay, order)
    with pytest.raises(ProviderDeclined, match="greater") as declined:
        razorpay.refund(order, unsaved.refund(order, 501))
    assert declined.value.code == "BAD_REQUEST_ERROR"


def test_a_refund_of_an_unpaid_order_is_declined(order):
    with pytest.raises(ProviderDeclined):
        razorpay.refund(order, unsaved.refund(order, 1))


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("pending", Refund.Status.PENDING),
        ("processed", Refund.Status.SUCCEEDED),
        ("failed", Refund.Status.FAILED),
    ],
)
def test_how_a_refund_stands(fakepay, order, theirs, ours):
    paid(fakepay, order)
    refund_id = fakepay.razorpay.refund(order.provider_payment_id, 100)
    fakepay.razorpay.refunds[refund_id]["status"] = theirs
    assert razorpay.fetch(order).refunds == (RefundState(refund_id, 100, ours),)


def test_a_dispute_from_its_beginning_to_its_end(fakepay, order):
    paid(fakepay, order)
    dispute_id = fakepay.razorpay.open_dispute(order.provider_payment_id)

    def stands() -> tuple[str, bool]:
        [dispute] = razorpay.fetch(order).disputes
        assert (dispute.id, dispute.amount_minor) == (dispute_id, 500)
        return dispute.status, dispute.funds_withdrawn

    assert stands() == ("open", False)
    fakepay.razorpay.withdraw(dispute_id)
    assert stands() == ("open", True)
    fakepay.razorpay.win(dispute_id)
    assert stands() == ("won", False)
    fakepay.razorpay.lose(dispute_id)
    assert stands() == ("lost", True)


@pytest.mark.parametrize(("deducted", "status"), [(0, "won"), (500, "lost")])
def test_a_closed_dispute_is_won_when_nothing_was_taken(fakepay, order, deducted, status):
    paid(fakepay, order)
    dispute_id = fakepay.razorpay.open_dispute(order.provider_payment_id)
    fakepay.razorpay.disputes[dispute_id].update(status="closed", amount_deducted=deducted)
    [dispute] = razorpay.fetch(order).disputes
    assert (dispute.status, dispute.funds_withdrawn) == (status, bool(deducted))


def test_our_disputes_are_found_among_many(fakepay, order, monkeypatch):
    monkeypatch.setattr(adapter, "PAGE", 2)
    paid(fakepay, order)
    ours = fakepay.razorpay.open_dispute(order.provider_payment_id)
    for _ in range(4):
        other = fakepay.razorpay.open_dispute(order.provider_payment_id)
        fakepay.razorpay.disputes[other]["payment_id"] = "pay_of_somebody_else"
    assert [dispute.id for dispute in razorpay.fetch(order).disputes] == [ours]


def test_an_account_that_may_not_list_disputes_still_sells(fakepay, order, caplog):
    fakepay.razorpay.can_list_disputes = False
    assert razorpay.fetch(paid(fakepay, order)).standing is Standing.PAID
    assert "list disputes" in caplog.text


def test_nothing_is_charged_without_the_buyer(fakepay, order):
    with pytest.raises(ProviderDeclined, match="not possible"):
        razorpay.charge_saved(order, unsaved.top_up())


# --- When Razorpay is away --------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["500", "html", "hang", "cut"])
def test_no_usable_answer_is_not_a_no(fakepay, order, impatient, fault, capfd):
    fakepay.fault(fault)
    with pytest.raises(ProviderError) as raised:
        razorpay.fetch(order)
    assert not isinstance(raised.value, ProviderDeclined)
    printed = capfd.readouterr()
    assert (printed.out, printed.err) == ("", "")
    assert razorpay.fetch(order).standing is Standing.OPEN


def test_a_refused_connection_is_not_a_no(fakepay, order, settings, capfd):
    settings.RAZORPAY_API_BASE = "http://127.0.0.1:9"
    with pytest.raises(ProviderError, match="no answer"):
        razorpay.fetch(order)
    assert capfd.readouterr().out == ""


def test_an_order_is_not_asked_for_twice_by_the_library(fakepay):
    fakepay.fault("", "500")
    with pytest.raises(ProviderError):
        razorpay.create_checkout(unsaved.order("razorpay"), **URLS)
    assert [request[0] for request in fakepay.requests] == ["GET", "POST"]


def test_an_answer_without_what_we_need_is_not_a_no(fakepay, order):
    del fakepay.razorpay.orders[order.provider_order_id]["amount"]
    with pytest.raises(ProviderError, match="cannot be read"):
        razorpay.fetch(order)


def test_a_wrong_key_is_not_a_no(fakepay, order, settings):
    settings.RAZORPAY_KEY_SECRET = "another"
    with pytest.raises(ProviderError, match="HTTP 401") as raised:
        razorpay.fetch(order)
    assert not isinstance(raised.value, ProviderDeclined)


# --- Webhooks ---------------------------------------------------------------------------------

EVENT = razorpay_event("payment.captured", payment={"id": "pay_1", "order_id": "order_1"})
BODY = json.dumps(EVENT).encode()


def check(body: bytes, signature: str | None, **headers: str):
    if signature is not None:
        headers["X-Razorpay-Signature"] = signature
    return razorpay.verify(body, headers)


def now(**changes) -> bytes:
    return json.dumps({**EVENT, **changes}).encode()


def test_a_signed_event_is_read(fakepay):
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


def test_an_event_without_id_is_named_by_its_body(fakepay):
    notice = check(BODY, sign(BODY, RAZORPAY_SECRET))
    assert notice.event_id == notice.body_sha256 == hashlib.sha256(BODY).hexdigest()


def test_secrets_may_be_replaced_without_losing_events(fakepay, settings):
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
def test_a_bad_signature_is_refused(fakepay, signature):
    with pytest.raises(BadSignature):
        check(BODY, signature)


def test_without_a_secret_nothing_is_believed(fakepay, settings):
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
    "no event": now(entity="payment"),
    "no type": now(event=None),
    "a type that Postgres refuses": now(event="payment\0"),
}


@pytest.mark.parametrize("body", BAD_BODIES.values(), ids=BAD_BODIES)
def test_what_is_signed_but_no_event_is_refused(fakepay, body):
    with pytest.raises(BadSignature):
        check(body, sign(body, RAZORPAY_SECRET))


@pytest.mark.parametrize("payload", [None, [], "x", {}, {"payment": None}, {"payment": []}])
def test_an_event_about_nothing_is_read(fakepay, payload):
    body = now(payload=payload)
    notice = check(body, sign(body, RAZORPAY_SECRET))
    assert (notice.order_id, notice.provider_order_id, notice.payment_id) == ("", "", "")


@pytest.mark.parametrize("event_id", ["x" * 256, "evt\0", ""])
def test_an_event_id_that_cannot_be_stored_is_replaced(fakepay, event_id):
    headers = {"X-Razorpay-Event-Id": event_id}
    notice = check(BODY, sign(BODY, RAZORPAY_SECRET), **headers)
    assert notice.event_id == notice.body_sha256


def test_each_event_leads_to_its_order(fakepay, order):
    paid(fakepay, order)
    payment, seen = order.provider_payment_id, {}
    razorpay.refund(order, unsaved.refund(order, 100))
    dispute_id = fakepay.razorpay.open_dispute(payment)
    fakepay.razorpay.withdraw(dispute_id)
    fakepay.razorpay.win(dispute_id)

    def receive(provider, body, headers):
        notice = razorpay.verify(body, headers)
        seen[notice.event_type] = (notice.order_id, notice.provider_order_id, notice.payment_id)
        return 200

    fakepay.postman.flush(receive)
    expected = (str(order.id), order.provider_order_id, payment)
    assert seen == dict.fromkeys(
        [
            "payment.captured",
            "order.paid",
            "refund.processed",
            "payment.dispute.created",
            "payment.dispute.under_review",
            "payment.dispute.won",
        ],
        expected,
    )
