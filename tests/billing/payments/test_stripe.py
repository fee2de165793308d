from __future__ import annotations

import json
import time
from typing import Any

import pytest
import stripe as library

from billing.models import Refund
from billing.payments.providers import base, enabled, get
from billing.payments.providers import stripe as adapter
from billing.payments.providers.base import (
    BadSignature,
    ProviderDeclined,
    ProviderError,
    RefundState,
    Standing,
)
from tests.support.fakepay import unsaved
from tests.support.fakepay.postman import STRIPE_SECRET, stripe_event
from tests.support.fakepay.stripe_side import nest

stripe = adapter.StripeProvider()
sign = library.WebhookSignature.generate_signature_header

URLS: dict[str, Any] = {
    "return_url": "http://localhost/billing/orders/1/return/",
    "cancel_url": "http://localhost/billing/packages/",
}


@pytest.fixture
def order(fakepay):
    """An order with its payment page."""
    return opened(unsaved.order("stripe"))


@pytest.fixture
def without_retries(monkeypatch):
    monkeypatch.setattr(adapter, "RETRIES", 0)
    monkeypatch.setattr(adapter, "TIMEOUT", (1, 0.3))


def opened(order, **options):
    made = stripe.create_checkout(order, **URLS, **options)
    order.provider_order_id, order.checkout_url = made.provider_order_id, made.url
    return order


def paid(fakepay, order):
    order.provider_payment_id = fakepay.stripe.pay(order.provider_order_id)
    return order


# --- Buying -----------------------------------------------------------------------------------


def test_a_checkout_is_made_once(fakepay):
    order = unsaved.order("stripe")
    first = stripe.create_checkout(order, **URLS)
    second = stripe.create_checkout(order, **URLS)
    assert first == second
    assert first.url == f"{fakepay.url}/pay/stripe/{first.provider_order_id}"
    assert not first.fields
    assert len(fakepay.stripe.sessions) == 1


def test_what_a_checkout_is_asked_for(fakepay, order):
    [(method, path, form)] = fakepay.requests
    sent = nest(form)
    metadata = {"order_id": str(order.id), "user_id": str(order.user_id)}
    assert (method, path) == ("POST", "/v1/checkout/sessions")
    assert sent["mode"] == "payment"
    assert sent["metadata"] == sent["payment_intent_data"]["metadata"] == metadata
    assert sent["client_reference_id"] == str(order.id)
    assert sent["invoice_creation"] == {"enabled": "true"}
    assert sent["adaptive_pricing"] == {"enabled": "false"}
    assert sent["success_url"] == URLS["return_url"]
    assert sent["line_items"][0]["price_data"]["unit_amount"] == "500"
    assert "automatic_tax" not in sent
    assert "setup_future_usage" not in sent["payment_intent_data"]


def test_an_open_page_is_found_again_without_its_key(fakepay, order):
    fakepay.stripe.replays.forget()
    assert stripe.create_checkout(order, **URLS).url == order.checkout_url
    assert len(fakepay.stripe.sessions) == 1


def test_a_closed_page_is_not_offered(fakepay, order):
    fakepay.stripe.expire(order.provider_order_id)
    with pytest.raises(ProviderDeclined, match="closed"):
        stripe.create_checkout(order, **URLS)


def test_who_has_paid_is_not_asked_again(fakepay, order):
    paid(fakepay, order)
    assert stripe.create_checkout(order, **URLS).url == URLS["return_url"]


def test_the_same_key_for_other_parameters_is_an_error(fakepay):
    order = unsaved.order("stripe")
    stripe.create_checkout(order, **URLS)
    with pytest.raises(ProviderError, match="IdempotencyError") as raised:
        stripe.create_checkout(order, return_url="http://other.example.org/", cancel_url="x")
    assert not isinstance(raised.value, ProviderDeclined)


def test_a_checkout_whose_answer_was_lost_is_made_once(fakepay):
    fakepay.fault("cut")
    stripe.create_checkout(unsaved.order("stripe"), **URLS)  # the library tries again by itself
    assert len(fakepay.requests) == 2
    assert len(fakepay.stripe.sessions) == 1


@pytest.mark.parametrize(
    ("currency", "minor", "theirs"),
    [("USD", 500, "500"), ("JPY", 500, "500"), ("ISK", 500, "50000"), ("KWD", 5120, "5120")],
)
def test_amounts_are_in_stripes_units(fakepay, currency, minor, theirs):
    order = opened(unsaved.order("stripe", currency=currency, amount_minor=minor))
    [item] = nest(fakepay.requests[0][2])["line_items"]
    assert item["price_data"]["unit_amount"] == theirs
    state = stripe.fetch(paid(fakepay, order))
    assert (state.amount_minor, state.currency) == (minor, currency)


def test_a_currency_that_stripe_counts_in_its_own_way_is_refused(fakepay):
    with pytest.raises(ProviderDeclined, match="MGA"):
        stripe.create_checkout(unsaved.order("stripe", currency="MGA"), **URLS)


# --- How an order stands ----------------------------------------------------------------------


def test_an_order_without_a_session_is_open(fakepay):
    order = unsaved.order("stripe")
    state = stripe.fetch(order)
    assert (state.standing, state.provider_order_id) == (Standing.OPEN, "")
    assert fakepay.requests == []


def test_an_unpaid_order_is_open_even_after_a_declined_card(fakepay, order):
    assert stripe.fetch(order).standing is Standing.OPEN
    fakepay.stripe.fail(order.provider_order_id)
    state = stripe.fetch(order)
    assert (state.standing, state.problem) == (Standing.OPEN, "Your card was declined.")


def test_a_paid_order(fakepay, order):
    paid(fakepay, order)
    state = stripe.fetch(order)
    assert state == base.OrderState(
        standing=Standing.PAID,
        provider_order_id=order.provider_order_id,
        amount_minor=500,
        currency="USD",
        livemode=False,
        order_id=str(order.id),
        user_id=str(order.user_id),
        payment_id=order.provider_payment_id,
        receipt_url=state.receipt_url,
    )
    assert "/invoice/in_" in state.receipt_url


def test_an_expired_order_is_canceled(fakepay, order):
    fakepay.stripe.expire(order.provider_order_id)
    assert stripe.fetch(order).standing is Standing.CANCELED


def test_a_payment_that_takes_days(fakepay, order):
    fakepay.stripe.pay_late(order.provider_order_id)
    assert stripe.fetch(order).standing is Standing.OPEN
    fakepay.stripe.settle_late(order.provider_order_id)
    assert stripe.fetch(order).standing is Standing.PAID


def test_a_late_payment_that_fails(fakepay, order):
    fakepay.stripe.pay_late(order.provider_order_id)
    fakepay.stripe.fail_late(order.provider_order_id)
    state = stripe.fetch(order)
    assert (state.standing, state.problem) == (Standing.FAILED, "Your card was declined.")


def test_what_stripe_says_is_told_as_it_is(fakepay, order):
    """Whether it fits our order is for billing.payments.checkout to judge."""
    paid(fakepay, order)
    fakepay.stripe.sessions[order.provider_order_id].update(
        amount_total=1, currency="eur", livemode=True, metadata={"user_id": "999"}
    )
    state = stripe.fetch(order)
    assert (state.amount_minor, state.currency, state.livemode) == (1, "EUR", True)
    assert (state.order_id, state.user_id) == ("", "999")


def test_a_free_session_is_not_an_order_of_ours(fakepay, order):
    fakepay.stripe.sessions[order.provider_order_id].update(
        status="complete", payment_status="no_payment_required", amount_total=0
    )
    state = stripe.fetch(order)
    assert (state.standing, state.amount_minor, state.payment_id) == (Standing.PAID, 0, None)


def test_tax_is_part_of_our_amount(fakepay, settings):
    settings.STRIPE_TAX = True
    fakepay.stripe.tax_percent = 25
    order = paid(fakepay, opened(unsaved.order("stripe")))
    sent = nest(fakepay.requests[0][2])
    assert sent["automatic_tax"] == {"enabled": "true"}
    assert sent["line_items"][0]["price_data"]["tax_behavior"] == "inclusive"
    state = stripe.fetch(order)
    assert (state.amount_minor, state.tax_minor) == (500, 100)


# --- Refunds and disputes ---------------------------------------------------------------------


def test_a_refund_is_made_once_even_after_stripe_forgot_its_key(fakepay, order):
    paid(fakepay, order)
    refund = unsaved.refund(order, 200)
    first = stripe.refund(order, refund)
    fakepay.stripe.replays.forget()
    assert stripe.refund(order, refund) == first
    assert first == RefundState(first.id, 200, Refund.Status.SUCCEEDED, str(refund.id))
    assert stripe.fetch(order).refunds == (first,)


def test_a_refund_is_made_once_while_lists_lag_behind(fakepay, order):
    paid(fakepay, order)
    fakepay.stripe.lists_lag = True
    refund = unsaved.refund(order, 200)
    assert stripe.refund(order, refund) == stripe.refund(order, refund)


def test_a_refund_whose_answer_was_lost_is_made_once(fakepay, order, without_retries):
    paid(fakepay, order)
    refund = unsaved.refund(order, 200)
    fakepay.faults.extend(["", "cut"])  # the list, then the refund
    with pytest.raises(ProviderError):
        stripe.refund(order, refund)
    stripe.refund(order, refund)
    assert [state.amount_minor for state in stripe.fetch(order).refunds] == [200]


def test_a_refund_of_more_than_was_paid_is_declined(fakepay, order):
    paid(fakepay, order)
    fakepay.stripe.refund(order.provider_payment_id)
    with pytest.raises(ProviderDeclined) as declined:
        stripe.refund(order, unsaved.refund(order, 1))
    assert declined.value.code == "charge_already_refunded"


def test_a_refund_of_an_unpaid_order_is_declined(order):
    with pytest.raises(ProviderDeclined):
        stripe.refund(order, unsaved.refund(order, 1))


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("pending", Refund.Status.PENDING),
        ("requires_action", Refund.Status.PENDING),
        ("succeeded", Refund.Status.SUCCEEDED),
        ("failed", Refund.Status.FAILED),
        ("canceled", Refund.Status.FAILED),
    ],
)
def test_how_a_refund_stands(fakepay, order, theirs, ours):
    paid(fakepay, order)
    refund_id = fakepay.stripe.refund(order.provider_payment_id, 100)
    fakepay.stripe.refunds[refund_id]["status"] = theirs
    assert stripe.fetch(order).refunds == (RefundState(refund_id, 100, ours),)


def test_a_dispute_from_its_beginning_to_its_end(fakepay, order):
    paid(fakepay, order)
    dispute_id = fakepay.stripe.open_dispute(order.provider_payment_id)

    def stands() -> tuple[str, bool]:
        [dispute] = stripe.fetch(order).disputes
        assert (dispute.id, dispute.amount_minor) == (dispute_id, 500)
        return dispute.status, dispute.funds_withdrawn

    assert stands() == ("open", False)
    fakepay.stripe.withdraw(dispute_id)
    assert stands() == ("open", True)
    fakepay.stripe.win(dispute_id)
    assert stands() == ("won", False)


def test_a_lost_dispute(fakepay, order):
    paid(fakepay, order)
    dispute_id = fakepay.stripe.open_dispute(order.provider_payment_id)
    fakepay.stripe.withdraw(dispute_id)
    fakepay.stripe.lose(dispute_id)
    [dispute] = stripe.fetch(order).disputes
    assert (dispute.status, dispute.funds_withdrawn) == ("lost", True)


def test_an_inquiry_takes_no_money(fakepay, order):
    paid(fakepay, order)
    dispute_id = fakepay.stripe.open_dispute(order.provider_payment_id, inquiry=True)
    [dispute] = stripe.fetch(order).disputes
    assert (dispute.status, dispute.funds_withdrawn) == ("open", False)
    fakepay.stripe.disputes[dispute_id]["status"] = "warning_closed"
    [dispute] = stripe.fetch(order).disputes
    assert (dispute.status, dispute.funds_withdrawn) == ("won", False)


# --- The saved card ---------------------------------------------------------------------------


def with_saved_card(fakepay):
    order = paid(fakepay, opened(unsaved.order("stripe"), save_method=True))
    state = stripe.fetch(order)
    assert state.customer_ref.startswith("cus_")
    assert state.payment_method_ref.startswith("pm_")
    return unsaved.top_up(
        customer_ref=state.customer_ref, payment_method_ref=state.payment_method_ref
    )


def test_a_card_is_saved_only_when_the_buyer_agreed(fakepay, order):
    state = stripe.fetch(paid(fakepay, order))
    assert state.payment_method_ref == ""


def test_a_saved_card_is_charged_once(fakepay):
    top_up = with_saved_card(fakepay)
    order = unsaved.order("stripe", kind="auto")
    first = stripe.charge_saved(order, top_up)
    fakepay.stripe.replays.forget()
    assert stripe.charge_saved(order, top_up) == first
    assert (first.standing, first.amount_minor, first.currency) == (Standing.PAID, 500, "USD")
    assert first.order_id == str(order.id)
    assert first.provider_order_id == first.payment_id
    order.provider_order_id = first.provider_order_id
    assert stripe.fetch(order) == first
    assert len(fakepay.stripe.intents) == 2


def test_a_saved_card_is_charged_once_while_lists_lag_behind(fakepay):
    top_up = with_saved_card(fakepay)
    order = unsaved.order("stripe", kind="auto")
    fakepay.stripe.lists_lag = True
    assert stripe.charge_saved(order, top_up) == stripe.charge_saved(order, top_up)


@pytest.mark.parametrize("code", ["insufficient_funds", "authentication_required"])
def test_a_declined_charge_stays_declined(fakepay, code):
    top_up = with_saved_card(fakepay)
    fakepay.stripe.declined_methods[top_up.payment_method_ref] = code
    order = unsaved.order("stripe", kind="auto")
    for _ in range(2):
        with pytest.raises(ProviderDeclined, match="declined") as declined:
            stripe.charge_saved(order, top_up)
        assert declined.value.code == code
    assert len(fakepay.stripe.intents) == 2


def test_nothing_is_charged_without_a_saved_card(fakepay):
    with pytest.raises(ProviderDeclined):
        stripe.charge_saved(unsaved.order("stripe"), unsaved.top_up())
    assert fakepay.requests == []


# --- When Stripe is away ----------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["500", "html", "hang", "cut"])
def test_no_usable_answer_is_not_a_no(fakepay, order, without_retries, fault, capfd):
    fakepay.fault(fault)
    with pytest.raises(ProviderError) as raised:
        stripe.fetch(order)
    assert not isinstance(raised.value, ProviderDeclined)
    assert "<html>" not in str(raised.value)
    assert capfd.readouterr().out == ""
    assert stripe.fetch(order).standing is Standing.OPEN


def test_a_refused_connection_is_not_a_no(fakepay, order, settings, without_retries):
    settings.STRIPE_API_BASE = "http://127.0.0.1:9"
    with pytest.raises(ProviderError, match="no answer"):
        stripe.fetch(order)


def test_a_passing_failure_is_repeated_by_itself(fakepay, order):
    fakepay.fault("500", "html")
    assert stripe.fetch(order).standing is Standing.OPEN


def test_an_answer_without_what_we_need_is_not_a_no(fakepay, order):
    del fakepay.stripe.sessions[order.provider_order_id]["currency"]
    with pytest.raises(ProviderError, match="cannot be read"):
        stripe.fetch(order)


def test_a_wrong_key_is_not_a_no(fakepay, order, settings):
    settings.STRIPE_SECRET_KEY = "sk_test_of_somebody_else"
    with pytest.raises(ProviderError, match="AuthenticationError") as raised:
        stripe.fetch(order)
    assert not isinstance(raised.value, ProviderDeclined)


def test_an_unknown_session_is_a_no(fakepay):
    with pytest.raises(ProviderDeclined) as declined:
        stripe.fetch(unsaved.order("stripe", provider_order_id="cs_unknown"))
    assert declined.value.code == "resource_missing"


# --- Webhooks ---------------------------------------------------------------------------------

EVENT = stripe_event("payment_intent.succeeded", {"object": "payment_intent", "id": "pi_1"})
BODY = json.dumps(EVENT)


def check(body: bytes | str, signature: str | None):
    body = body.encode() if isinstance(body, str) else body
    return stripe.verify(body, {} if signature is None else {"Stripe-Signature": signature})


def now(**changes) -> str:
    """A body of an event with changes, and its signature."""
    return json.dumps({**EVENT, **changes})


def test_a_signed_event_is_read(fakepay):
    notice = check(BODY, sign(BODY, STRIPE_SECRET))
    assert (notice.event_id, notice.event_type) == (EVENT["id"], "payment_intent.succeeded")
    assert (notice.payment_id, notice.livemode, notice.body_sha256) == ("pi_1", False, None)


@pytest.mark.parametrize("name", ["stripe-signature", "STRIPE-SIGNATURE"])
def test_the_case_of_a_header_does_not_matter(fakepay, name):
    assert stripe.verify(BODY.encode(), {name: sign(BODY, STRIPE_SECRET)}).event_id == EVENT["id"]


def test_secrets_may_be_replaced_without_losing_events(fakepay, settings):
    settings.STRIPE_WEBHOOK_SECRETS = ["whsec_new", "whsec_old"]
    for secret in settings.STRIPE_WEBHOOK_SECRETS:
        assert check(BODY, sign(BODY, secret)).event_id == EVENT["id"]
    stamp = int(time.time())
    new, old = (sign(BODY, secret, stamp).split(",")[1] for secret in ("whsec_x", "whsec_old"))
    assert check(BODY, f"t={stamp},{new},{old}").event_id == EVENT["id"]


def test_almost_five_minutes_are_not_too_old(fakepay):
    assert check(BODY, sign(BODY, STRIPE_SECRET, int(time.time()) - 280))


BAD_SIGNATURES = {
    "none": None,
    "empty": "",
    "garbage": "garbage",
    "no timestamp": "v1=abc",
    "no signature": "t=1",
    "an endless number": f"t={'9' * 5000},v1=abc",
    "another secret": sign(BODY, "whsec_other"),
    "another body": sign(BODY + " ", STRIPE_SECRET),
    "not ASCII": f"t={int(time.time())},v1=é",
    "of 1970": sign(BODY, STRIPE_SECRET, 1),
    "only v0": sign(BODY, STRIPE_SECRET).replace("v1=", "v0="),
}


@pytest.mark.parametrize("signature", BAD_SIGNATURES.values(), ids=BAD_SIGNATURES)
def test_a_bad_signature_is_refused(fakepay, signature):
    with pytest.raises(BadSignature):
        check(BODY, signature)


def test_a_signature_of_six_minutes_ago_is_refused(fakepay):
    with pytest.raises(BadSignature):
        check(BODY, sign(BODY, STRIPE_SECRET, int(time.time()) - 360))


def test_without_a_secret_nothing_is_believed(fakepay, settings):
    settings.STRIPE_WEBHOOK_SECRETS = []
    with pytest.raises(BadSignature):
        check(BODY, sign(BODY, ""))


BAD_BODIES = {
    "not JSON": "not JSON",
    "nothing": "",
    "a list": "[]",
    "a number": "1",
    "null": "null",
    "deep": "[" * 100_000,
    "a number without end": "9" * 5000,
    "no event": now(object="charge"),
    "a thin event": now(object="v2.core.event"),
    "the other mode": now(livemode=True),
    "no mode": now(livemode=None),
    "a mode that is no boolean": now(livemode=0),
    "no id": now(id=None),
    "an id that is no text": now(id=5),
    "an endless id": now(id="x" * 256),
    "an id that Postgres refuses": now(id="evt_\0"),
    "no type": now(type=""),
}


@pytest.mark.parametrize("body", BAD_BODIES.values(), ids=BAD_BODIES)
def test_what_is_signed_but_no_event_of_ours_is_refused(fakepay, body):
    with pytest.raises(BadSignature):
        check(body, sign(body, STRIPE_SECRET))


def test_a_body_that_is_not_text_is_refused(fakepay):
    with pytest.raises(BadSignature):
        check(b"\xff\xfe" + BODY.encode(), sign(BODY, STRIPE_SECRET))


@pytest.mark.parametrize("data", [None, [], "x", {}, {"object": None}, {"object": []}])
def test_an_event_about_nothing_is_read(fakepay, data):
    body = now(data=data)
    notice = check(body, sign(body, STRIPE_SECRET))
    assert (notice.order_id, notice.provider_order_id, notice.payment_id) == ("", "", "")


def test_each_event_leads_to_its_order(fakepay, order):
    paid(fakepay, order)
    payment, seen = order.provider_payment_id, {}
    refund = unsaved.refund(order, 100)
    stripe.refund(order, refund)
    dispute_id = fakepay.stripe.open_dispute(payment)
    fakepay.stripe.withdraw(dispute_id)
    fakepay.stripe.win(dispute_id)

    def receive(provider, body, headers):
        notice = stripe.verify(body, headers)
        seen[notice.event_type] = (notice.order_id, notice.provider_order_id, notice.payment_id)
        return 200

    fakepay.postman.flush(receive)
    ours = str(order.id)
    assert seen == {
        "payment_intent.succeeded": (ours, "", payment),
        "checkout.session.completed": (ours, order.provider_order_id, payment),
        "refund.created": (ours, "", payment),
        "charge.refunded": (ours, "", payment),
        "charge.dispute.created": ("", "", payment),
        "charge.dispute.funds_withdrawn": ("", "", payment),
        "charge.dispute.closed": ("", "", payment),
        "charge.dispute.funds_reinstated": ("", "", payment),
    }


# --- By name ----------------------------------------------------------------------------------


def test_providers_are_on_when_they_are_configured(fakepay, settings):
    assert [provider.name for provider in enabled()][:2] == ["stripe", "razorpay"]
    assert get("stripe").label == "Stripe"
    settings.STRIPE_SECRET_KEY = ""
    with pytest.raises(LookupError):
        get("stripe")
    with pytest.raises(LookupError):
        get("no-such-provider")
