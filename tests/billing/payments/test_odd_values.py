"""Signed webhooks and answers of providers with odd values: refused or left to staff, never a 500."""

from __future__ import annotations

import hashlib
import hmac
import time

import pytest
from django.core.management import call_command

from billing.credits import MICRO
from billing.models import Order, ProviderEvent
from billing.payments import checkout
from billing.payments.providers import payload
from tests.support import money, purchases
from tests.support.fakepay.postman import RAZORPAY_SECRET, STRIPE_SECRET, sign_for_razorpay

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("sandbox")]

FULL = 1100 * MICRO

# Events with a place for an odd value.
EVENTS = {
    "stripe": (
        '{"object": "event", "livemode": false, "id": %(id)s, "type": %(type)s, "data": {"object":'
        ' {"object": "checkout.session", "id": %(order)s, "metadata": {"order_id": %(ours)s},'
        ' "payment_intent": %(payment)s}}}'
    ),
    "razorpay": (
        '{"entity": "event", "id": %(id)s, "event": %(type)s, "payload": {"order": {"entity":'
        ' {"id": %(order)s, "notes": {"order_id": %(ours)s}}}, "payment": {"entity":'
        ' {"id": %(payment)s}}}}'
    ),
}
GOOD = {"id": '"e_1"', "type": '"x"', "order": '"o_1"', "ours": '"u_1"', "payment": '"p_1"'}
ODD = ['"a\\u0000b"', '"\\ud800"', f'"{"a" * 501}"', "1.5", "true", "[]", '["a"]', "1e999", "{}"]


def deliver(provider: str, body: bytes, **headers: str) -> int:
    """Post a webhook that the provider signed; returns the status."""
    if provider == "stripe":
        stamp = int(time.time())
        message = b"%d." % stamp + body
        signed = hmac.new(STRIPE_SECRET.encode(), message, hashlib.sha256).hexdigest()
        headers = {"Stripe-Signature": f"t={stamp},v1={signed}"} | headers
    else:
        headers = {
            "X-Razorpay-Signature": sign_for_razorpay(body, RAZORPAY_SECRET),
            "X-Razorpay-Event-Id": hashlib.sha256(body).hexdigest()[:14],
        } | headers
    return purchases.receive(provider, body, headers)


@pytest.mark.parametrize("field", GOOD)
@pytest.mark.parametrize("odd", ODD)
def test_odd_id_in_a_webhook_is_refused(fakepay, provider, field, odd):
    is_unread = field == "id" and provider == "razorpay"  # its header counts
    is_object = odd == "{}" and field == "payment" and provider == "stripe"  # a whole object
    body = EVENTS[provider] % (GOOD | {field: odd})
    status = deliver(provider, body.encode())
    assert status == (200 if is_unread or is_object else 400)


def test_ids_of_other_shops_are_ignored(fakepay, provider):
    for number, theirs in enumerate(("1234", f'"{"a" * 300}"', "null", '"order 17"')):
        values = GOOD | {"ours": theirs, "id": f'"e_{number}"'}
        assert deliver(provider, (EVENTS[provider] % values).encode()) == 200
    purchases.work()
    assert set(ProviderEvent.objects.values_list("status", flat=True)) == {"ignored"}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b'"event"',
        b"NaN",
        b"7" * 5000,
        b"[" * 10_000,
        b'{"a":' * 10_000,
        b'{"object": "event"' + b', "data": [' * 10_000,
        b'{"object": "event", "object": "event", "entity": "event"}',
        b'{"object": "event", "amount": NaN}',
        b'{"object": "event", "amount": -Infinity}',
        b"\xff\xfe{\x00}\x00",
        b"\xef\xbb\xbf{}",
        '{"object": "événement"}'.encode("latin-1"),
        b"\0",
    ],
    ids=lambda body: f"{body[:4]!r}-{body[-8:]!r}",
)
def test_odd_body_of_a_webhook_is_refused(fakepay, provider, body):
    assert deliver(provider, body) == 400
    assert not ProviderEvent.objects.exists()


def test_huge_webhook_is_refused_unread(fakepay, provider):
    body = (EVENTS[provider] % GOOD).encode()
    assert deliver(provider, body + b" " * 512_000) == 413
    for length in ("9" * 5000, "-1", "x", "\N{ARABIC-INDIC DIGIT FIVE}"):
        assert deliver(provider, body, **{"Content-Length": length}) == 413


def test_odd_headers_of_a_webhook_are_stored_cleaned(fakepay, provider):
    body = (EVENTS[provider] % GOOD).encode()
    assert deliver(provider, body, **{"Sandbox-Signature": "a\0b\ud800"}) == 200
    assert ProviderEvent.objects.get().headers["Sandbox-Signature"] == "ab"


# --- Answers of the providers' APIs --------------------------------------------------------------


def alter(side, of: Order, what: str, value: object) -> None:
    """Change a value of a paid order's objects at the provider."""
    is_stripe = hasattr(side, "sessions")
    session = (side.sessions if is_stripe else side.orders)[of.provider_order_id]
    intents = side.intents if is_stripe else side.payments
    payment = next(reversed(intents.values()))
    if what == "payment":
        payment["id"] = value
    elif what == "amount":
        session["amount_total" if is_stripe else "amount_paid"] = value
    elif what == "currency":
        (session if is_stripe else payment)["currency"] = value
    elif what == "refund":
        side.refund(next(reversed(intents)))
        next(iter(side.refunds.values()))["id"] = value
    elif what == "refunded":
        side.refund(next(reversed(intents)))
        next(iter(side.refunds.values()))["amount"] = value


CASES = [
    ("payment", "pi_\0"),
    ("payment", "p" * 300),
    ("amount", "500"),
    ("amount", 2**70),
    ("amount", -1),
    ("amount", 1.5),
    ("currency", "\0\0\0"),
    ("currency", 7),
    ("refund", "re_\ud800"),
    ("refund", None),
    ("refunded", 0),
    ("refunded", 2**64),
]


@pytest.mark.parametrize(("what", "value"), CASES)
def test_odd_answer_goes_to_review_once(account, fakepay, side, provider_order, what, value):
    side.pay(provider_order.provider_order_id)
    alter(side, provider_order, what, value)
    for _ in range(2):
        after = checkout.sync_order(provider_order.pk)
        assert after.status == "review"
        assert after.problem
    assert len(purchases.alerts()) == 1
    assert money.state(account) == (0, 0, 0)


def test_odd_order_keeps_no_other_from_its_credits(account, fakepay, side, provider):
    odd, good = (purchases.begun(account, provider=provider) for _ in range(2))
    for order in (odd, good):
        side.pay(order.provider_order_id)
    sessions = side.sessions if provider == "stripe" else side.orders
    sessions[odd.provider_order_id]["metadata" if provider == "stripe" else "amount_paid"] = "x\0"
    call_command("reconcile_payments")
    assert [Order.objects.get(pk=order.pk).status for order in (odd, good)] == ["review", "paid"]


@pytest.mark.parametrize(
    ("url", "kept"),
    [
        ("https://pay.example.org/receipt?a=1", True),
        ("https://pay.example.org/" + "a" * 2000, False),
        ("http://pay.example.org/receipt", False),
        ("javascript:alert(1)", False),
        ("https://", False),
        ("https://[::1", False),
        ("https://pay.example.org/\0", False),
        (None, False),
        (["https://pay.example.org/"], False),
    ],
)
def test_receipt_link_is_https_and_short(account, fakepay, url, kept):
    order = purchases.begun(account, provider="stripe")
    payment = fakepay.stripe.pay(order.provider_order_id)
    fakepay.stripe.sessions[order.provider_order_id]["invoice"] = None
    fakepay.stripe.intents[payment]["latest_charge"]["receipt_url"] = url
    after = checkout.sync_order(order.pk)
    assert (after.status, after.receipt_url) == ("paid", url if kept else "")
    assert money.state(account) == (FULL, 0, 0)
    assert payload.https_url(url) == after.receipt_url


# --- Payments of other orders --------------------------------------------------------------------


def test_payment_of_another_order_credits_no_one_else(account, fakepay):
    owner, thief = (purchases.begun(money.open_account(), provider="stripe") for _ in range(2))
    payment = fakepay.stripe.pay(owner.provider_order_id)
    fakepay.stripe.sessions[thief.provider_order_id].update(
        payment_intent=payment, payment_status="paid", status="complete"
    )
    after = checkout.sync_order(thief.pk)
    assert (after.status, len(purchases.alerts())) == ("review", 1)
    assert money.state(thief.account) == (0, 0, 0)
    assert checkout.sync_order(owner.pk).status == "paid"
    assert money.state(owner.account) == (FULL, 0, 0)


def test_second_payment_at_razorpay_goes_to_review(account, fakepay):
    order = purchases.begun(account, provider="razorpay")
    first = fakepay.razorpay.pay(order.provider_order_id)
    second = fakepay.razorpay.pay(order.provider_order_id)
    fakepay.razorpay.orders[order.provider_order_id]["amount_paid"] *= 2
    for _ in range(2):
        after = checkout.sync_order(order.pk)
        assert after.status == "paid"
        [other] = {first, second} - {after.provider_payment_id}
        assert other in after.problem
    assert purchases.alerts() == ["Parley: A purchase was paid twice"]
    assert money.state(account) == (FULL, 0, 0)
    fakepay.razorpay.refund(other)
    assert checkout.sync_order(order.pk).problem == ""
