"""The adapter of Stripe beyond the shared contract: sessions, saved cards and signatures."""

from __future__ import annotations

import json
import time

import pytest
import stripe as library

from billing.models import ProviderRequest
from billing.payments.providers import enabled, get
from billing.payments.providers import stripe as adapter
from billing.payments.providers.base import (
    BadSignature,
    ProviderDeclined,
    ProviderError,
    Standing,
)
from tests.support import purchases
from tests.support.fakepay import unsaved
from tests.support.fakepay.postman import STRIPE_SECRET, stripe_event
from tests.support.fakepay.stripe_side import nest

pytestmark = pytest.mark.django_db

stripe = adapter.StripeProvider()
sign = library.WebhookSignature.generate_signature_header


@pytest.fixture
def order(fakepay):
    """An order with its payment page."""
    return opened(unsaved.order("stripe"))


@pytest.fixture
def paid_order(fakepay, order):
    return paid(fakepay, order)


def opened(order, **options):
    made = stripe.create_checkout(order, **purchases.URLS, **options)
    order.provider_order_id, order.checkout_url = made.provider_order_id, made.url
    return order


def paid(fakepay, order):
    order.provider_payment_id = fakepay.stripe.pay(order.provider_order_id)
    return order


# --- Buying -----------------------------------------------------------------------------------


def test_checkout_is_made_once(fakepay):
    order = unsaved.order("stripe")
    first = stripe.create_checkout(order, **purchases.URLS)
    second = stripe.create_checkout(order, **purchases.URLS)
    assert first == second
    assert first.url == f"{fakepay.url}/pay/stripe/{first.provider_order_id}"
    assert not first.fields
    assert len(fakepay.stripe.sessions) == 1


def test_checkout_request_is_complete(fakepay, order):
    [(method, path, form)] = fakepay.requests
    sent = nest(form)
    metadata = {"order_id": str(order.id), "user_id": str(order.user_id)}
    assert (method, path) == ("POST", "/v1/checkout/sessions")
    assert sent["mode"] == "payment"
    assert sent["metadata"] == sent["payment_intent_data"]["metadata"] == metadata
    assert sent["client_reference_id"] == str(order.id)
    assert sent["invoice_creation"] == {"enabled": "true"}
    assert sent["adaptive_pricing"] == {"enabled": "false"}
    assert sent["success_url"] == purchases.URLS["return_url"]
    assert sent["line_items"][0]["price_data"]["unit_amount"] == "500"
    assert "automatic_tax" not in sent
    assert "setup_future_usage" not in sent["payment_intent_data"]


def test_open_page_is_found_without_its_key(fakepay, order):
    fakepay.stripe.replays.forget()
    assert stripe.create_checkout(order, **purchases.URLS).url == order.checkout_url
    assert len(fakepay.stripe.sessions) == 1


def test_expired_page_is_not_offered(fakepay, order):
    fakepay.stripe.expire(order.provider_order_id)
    with pytest.raises(ProviderDeclined, match="closed"):
        stripe.create_checkout(order, **purchases.URLS)


def test_key_reused_with_other_parameters_is_replaced(fakepay):
    """As by an earlier release, which did not store the parameters."""
    order = unsaved.order("stripe")
    stripe.create_checkout(order, **purchases.URLS)
    ProviderRequest.objects.update(params='{"mode": "payment"}')
    with pytest.raises(ProviderError, match="IdempotencyError") as raised:
        stripe.create_checkout(order, **purchases.URLS)
    assert not isinstance(raised.value, ProviderDeclined)
    stripe.create_checkout(order, **purchases.URLS)


def test_checkout_is_made_once_after_a_lost_answer(fakepay):
    fakepay.fault("cut")
    stripe.create_checkout(unsaved.order("stripe"), **purchases.URLS)  # the library retries
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


def test_unsupported_currency_is_refused(fakepay):
    with pytest.raises(ProviderDeclined, match="MGA"):
        stripe.create_checkout(unsaved.order("stripe", currency="MGA"), **purchases.URLS)


# --- The state of an order --------------------------------------------------------------------


def test_order_without_a_session_is_open(fakepay):
    order = unsaved.order("stripe")
    state = stripe.fetch(order)
    assert (state.standing, state.provider_order_id) == (Standing.OPEN, "")
    assert fakepay.requests == []


def test_declined_card_leaves_the_order_open(fakepay, order):
    assert stripe.fetch(order).standing is Standing.OPEN
    fakepay.stripe.fail(order.provider_order_id)
    state = stripe.fetch(order)
    assert (state.standing, state.problem) == (Standing.OPEN, "Your card was declined.")


def test_expired_order_is_canceled(fakepay, order):
    fakepay.stripe.expire(order.provider_order_id)
    assert stripe.fetch(order).standing is Standing.CANCELED


def test_failed_late_payment_fails_the_order(fakepay, order):
    fakepay.stripe.pay_late(order.provider_order_id)
    fakepay.stripe.fail_late(order.provider_order_id)
    state = stripe.fetch(order)
    assert (state.standing, state.problem) == (Standing.FAILED, "Your card was declined.")


def test_session_is_reported_unchanged(fakepay, paid_order):
    """billing.payments.checkout decides whether it matches our order."""
    fakepay.stripe.sessions[paid_order.provider_order_id].update(
        amount_total=1, currency="eur", livemode=True, metadata={"user_id": "999"}
    )
    state = stripe.fetch(paid_order)
    assert (state.amount_minor, state.currency, state.livemode) == (1, "EUR", True)
    assert (state.order_id, state.user_id) == ("", "999")


def test_free_session_has_no_amount(fakepay, order):
    """The amount then does not match that of our order."""
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


def test_refund_beyond_the_payment_is_declined(fakepay, paid_order):
    fakepay.stripe.refund(paid_order.provider_payment_id)
    with pytest.raises(ProviderDeclined) as declined:
        stripe.refund(paid_order, unsaved.refund(paid_order, 1))
    assert declined.value.code == "charge_already_refunded"


def test_inquiry_takes_no_money(fakepay, paid_order):
    dispute_id = fakepay.stripe.open_dispute(paid_order.provider_payment_id, inquiry=True)
    [dispute] = stripe.fetch(paid_order).disputes
    assert (dispute.status, dispute.funds_withdrawn) == ("open", False)
    fakepay.stripe.disputes[dispute_id]["status"] = "warning_closed"
    [dispute] = stripe.fetch(paid_order).disputes
    assert (dispute.status, dispute.funds_withdrawn) == ("won", False)


# --- The saved card ---------------------------------------------------------------------------


@pytest.fixture
def saved_card(fakepay):
    """A top-up with the card that the buyer of an order agreed to save."""
    order = paid(fakepay, opened(unsaved.order("stripe"), save_method=True))
    state = stripe.fetch(order)
    assert state.customer_ref.startswith("cus_")
    assert state.payment_method_ref.startswith("pm_")
    return unsaved.top_up(
        customer_ref=state.customer_ref, payment_method_ref=state.payment_method_ref
    )


def test_card_is_saved_only_with_consent(paid_order):
    assert stripe.fetch(paid_order).payment_method_ref == ""


def test_saved_card_is_charged_once(fakepay, saved_card):
    order = unsaved.order("stripe", kind="auto")
    first = stripe.charge_saved(order, saved_card)
    fakepay.stripe.replays.forget()
    assert stripe.charge_saved(order, saved_card) == first
    assert (first.standing, first.amount_minor, first.currency) == (Standing.PAID, 500, "USD")
    assert first.order_id == str(order.id)
    assert first.provider_order_id == first.payment_id
    order.provider_order_id = first.provider_order_id
    assert stripe.fetch(order) == first
    assert len(fakepay.stripe.intents) == 2


def test_saved_card_is_charged_once_while_lists_lag(fakepay, saved_card):
    order = unsaved.order("stripe", kind="auto")
    fakepay.stripe.lists_lag = True
    assert stripe.charge_saved(order, saved_card) == stripe.charge_saved(order, saved_card)


@pytest.mark.parametrize("code", ["insufficient_funds", "authentication_required"])
def test_declined_charge_stays_declined(fakepay, saved_card, code):
    fakepay.stripe.declined_methods[saved_card.payment_method_ref] = code
    order = unsaved.order("stripe", kind="auto")
    for _ in range(2):
        with pytest.raises(ProviderDeclined, match="declined") as declined:
            stripe.charge_saved(order, saved_card)
        assert declined.value.code == code
    assert len(fakepay.stripe.intents) == 2


def test_nothing_is_charged_without_a_saved_card(fakepay):
    with pytest.raises(ProviderDeclined):
        stripe.charge_saved(unsaved.order("stripe"), unsaved.top_up())
    assert fakepay.requests == []


# --- Unreachable Stripe -----------------------------------------------------------------------


def test_passing_failure_is_retried(fakepay, order):
    fakepay.fault("500", "html")
    assert stripe.fetch(order).standing is Standing.OPEN


def test_unknown_session_is_a_decline(fakepay):
    with pytest.raises(ProviderDeclined) as declined:
        stripe.fetch(unsaved.order("stripe", provider_order_id="cs_unknown"))
    assert declined.value.code == "resource_missing"


# --- Webhooks ---------------------------------------------------------------------------------

EVENT = stripe_event("payment_intent.succeeded", {"object": "payment_intent", "id": "pi_1"})
BODY = json.dumps(EVENT)


def check(body: bytes | str, signature: str | None):
    body = body.encode() if isinstance(body, str) else body
    return stripe.verify(body, {} if signature is None else {"Stripe-Signature": signature})


def event_body(**changes) -> str:
    """Return the body of an event with changes."""
    return json.dumps({**EVENT, **changes})


def test_signed_event_is_read(fakepay):
    notice = check(BODY, sign(BODY, STRIPE_SECRET))
    assert (notice.event_id, notice.event_type) == (EVENT["id"], "payment_intent.succeeded")
    assert (notice.payment_id, notice.livemode, notice.body_sha256) == ("pi_1", False, None)


@pytest.mark.parametrize("name", ["stripe-signature", "STRIPE-SIGNATURE"])
def test_case_of_a_header_does_not_matter(fakepay, name):
    assert stripe.verify(BODY.encode(), {name: sign(BODY, STRIPE_SECRET)}).event_id == EVENT["id"]


def test_old_and_new_secrets_are_accepted(fakepay, settings):
    settings.STRIPE_WEBHOOK_SECRETS = ["whsec_new", "whsec_old"]
    for secret in settings.STRIPE_WEBHOOK_SECRETS:
        assert check(BODY, sign(BODY, secret)).event_id == EVENT["id"]
    stamp = int(time.time())
    new, old = (sign(BODY, secret, stamp).split(",")[1] for secret in ("whsec_x", "whsec_old"))
    assert check(BODY, f"t={stamp},{new},{old}").event_id == EVENT["id"]


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
def test_bad_signature_is_refused(fakepay, signature):
    with pytest.raises(BadSignature):
        check(BODY, signature)


def test_signature_expires_after_five_minutes(fakepay):
    assert check(BODY, sign(BODY, STRIPE_SECRET, int(time.time()) - 280))
    with pytest.raises(BadSignature):
        check(BODY, sign(BODY, STRIPE_SECRET, int(time.time()) - 360))


def test_without_a_secret_no_event_is_accepted(fakepay, settings):
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
    "no event": event_body(object="charge"),
    "a thin event": event_body(object="v2.core.event"),
    "the other mode": event_body(livemode=True),
    "no mode": event_body(livemode=None),
    "a mode that is no boolean": event_body(livemode=0),
    "no id": event_body(id=None),
    "an id that is no text": event_body(id=5),
    "an endless id": event_body(id="x" * 256),
    "an id that Postgres refuses": event_body(id="evt_\0"),
    "no type": event_body(type=""),
}


@pytest.mark.parametrize("body", BAD_BODIES.values(), ids=BAD_BODIES)
def test_signed_body_without_an_event_is_refused(fakepay, body):
    with pytest.raises(BadSignature):
        check(body, sign(body, STRIPE_SECRET))


def test_body_that_is_not_text_is_refused(fakepay):
    with pytest.raises(BadSignature):
        check(b"\xff\xfe" + BODY.encode(), sign(BODY, STRIPE_SECRET))


@pytest.mark.parametrize("data", [None, [], "x", {}, {"object": None}, {"object": []}])
def test_event_about_nothing_is_read(fakepay, data):
    body = event_body(data=data)
    notice = check(body, sign(body, STRIPE_SECRET))
    assert (notice.order_id, notice.provider_order_id, notice.payment_id) == ("", "", "")


# --- By name ----------------------------------------------------------------------------------


def test_configured_providers_are_enabled(fakepay, settings):
    assert [provider.name for provider in enabled()][:2] == ["stripe", "razorpay"]
    assert get("stripe").label == "Stripe"
    settings.STRIPE_SECRET_KEY = ""
    with pytest.raises(LookupError):
        get("stripe")
    with pytest.raises(LookupError):
        get("no-such-provider")
