"""Stripe: Checkout Sessions for purchases, PaymentIntents off session for automatic top-ups.

A purchase's `provider_order_id` is its Checkout Session (cs_…), an automatic top-up's its
PaymentIntent (pi_…); the payment is the PaymentIntent in both cases.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import stripe
from django.conf import settings
from django.utils.functional import Promise
from django.utils.translation import gettext as _

from billing.models import AutoTopUp, Order, Refund
from billing.payments.providers import idempotency
from billing.payments.providers.base import (
    BadSignature,
    Buyer,
    Checkout,
    DisputeState,
    Notice,
    OrderState,
    ProviderDeclined,
    ProviderError,
    RefundState,
    Standing,
    UnreadableAnswer,
    is_usable,
    metadata,
    require,
    unknown_order,
)
from billing.payments.providers.payload import (
    foreign_identifier,
    header,
    https_url,
    identifier,
    json_object,
    part,
    reference,
    sentence,
    word,
)
from chatproject.lib.db import limits

# The shape of the answers read below. Raise it together with the library, after reading Stripe's
# changelog; webhooks keep the version of their endpoint, and only ids are read from them.
API_VERSION = "2026-10-28.endive"
TIMEOUT = (3, 15)  # seconds to connect, and between two bytes
PAGE_TIMEOUT = (2, 5)  # the same for a page, which repeats nothing
RETRIES = 2  # by the library, under the same idempotency key
TOLERANCE = 300  # seconds that a webhook's signature may be old
PAGE = 100
WITH_CHARGE: Any = {"expand": ["latest_charge"]}

# Stripe counts hundredths of these, which have none.
HUNDREDFOLD = {"ISK", "UGX"}
# And counts whole ariary, where the currency has a hundredth on paper.
UNSUPPORTED = {"MGA"}

REFUND_STATUSES = {
    "succeeded": Refund.Status.SUCCEEDED,
    "failed": Refund.Status.FAILED,
    "canceled": Refund.Status.FAILED,
}
DISPUTE_STATUSES = {
    "won": "won",
    "warning_closed": "won",  # an inquiry that came to nothing
    "prevented": "won",
    "lost": "lost",
}

# It writes an id into the home directory and sends Stripe data about this machine.
stripe.enable_telemetry = False


class StripeProvider:
    """See base.PaymentProvider."""

    name = "stripe"
    label: str | Promise = "Stripe"

    @property
    def livemode(self) -> bool:
        """Whether the key is of the live mode."""
        return bool(settings.STRIPE_LIVEMODE)

    def create_checkout(
        self, order: Order, *, return_url: str, cancel_url: str, save_method: bool = False
    ) -> Checkout:
        """Make a Checkout Session, or find the one that the order has."""
        with _client() as client:
            if order.provider_order_id:
                session = client.v1.checkout.sessions.retrieve(order.provider_order_id)
            else:
                # An earlier page whose address was lost is closed after a day, and was seen by no buyer.
                session = _send(
                    client.v1.checkout.sessions.create,
                    f"order:{order.id}",
                    _session_of(order, return_url, cancel_url, save_method),
                )
            if session.status == "expired":
                raise ProviderDeclined(
                    _("The payment page is closed. Start a new purchase."), code="closed"
                )
            # A page that was paid on no longer has an address; the return page shows the result.
            return Checkout(provider_order_id=session.id, url=session.url or return_url)

    def fetch(self, order: Order) -> OrderState:
        """Return the order's state; open when Stripe has no record of it."""
        with _client() as client:
            if not order.provider_order_id:
                # The answer to the charge of an automatic order may have been lost.
                customer = _customer_of(order)
                made = _find_intent(client, order, customer) if customer else None
                if made is None:
                    return unknown_order(order, livemode=settings.STRIPE_LIVEMODE)
                return _state_of_intent(client, made)
            if order.provider_order_id.startswith("pi_"):
                intent = client.v1.payment_intents.retrieve(order.provider_order_id, WITH_CHARGE)
                return _state_of_intent(client, intent.to_dict())
            session = client.v1.checkout.sessions.retrieve(
                order.provider_order_id,
                {
                    "expand": [
                        "payment_intent.latest_charge",
                        "invoice",
                        "total_details.breakdown",
                    ]
                },
            ).to_dict()
            return _state_of_session(client, session)

    def verify(self, body: bytes, headers: Mapping[str, str]) -> Notice:
        """Read a webhook that was signed with one of our secrets within the last five minutes."""
        signature = header(headers, "Stripe-Signature")
        if not any(_is_signed(body, signature, key) for key in settings.STRIPE_WEBHOOK_SECRETS):
            raise BadSignature(_("The webhook is not signed by Stripe, or too long ago."))
        event = json_object(body)
        if event.get("object") != "event":
            raise BadSignature(_("The webhook is signed, but is not an event."))
        if event.get("livemode") is not settings.STRIPE_LIVEMODE:
            raise BadSignature(_("The webhook is of Stripe's other mode (test or live)."))
        event_id, event_type = identifier(event.get("id")), identifier(event.get("type"), 100)
        if not event_id or not event_type:
            raise BadSignature(_("The webhook is signed, but names no event."))
        subject = part(event, "data", "object")
        kind = subject.get("object")
        intent = subject if kind == "payment_intent" else subject.get("payment_intent")
        return Notice(
            event_id=event_id,
            event_type=event_type,
            livemode=settings.STRIPE_LIVEMODE,
            order_id=foreign_identifier(part(subject, "metadata").get("order_id"))
            or foreign_identifier(subject.get("client_reference_id")),
            provider_order_id=identifier(subject.get("id")) if kind == "checkout.session" else "",
            payment_id=identifier(
                intent.get("id") if isinstance(intent, dict) else intent  # whole, or its id
            ),
        )

    def refund(self, order: Order, refund: Refund) -> RefundState:
        """Send money back. Stripe forgets idempotency keys after a day, so look first."""
        payment = order.provider_payment_id
        if not payment:
            raise ProviderDeclined(_("The order has no payment."), code="no_payment")
        with _client() as client:
            for known in _refunds(client, payment, order.currency):
                if known.reference == str(refund.id):
                    return known
            made = _send(
                client.v1.refunds.create,
                f"refund:{refund.id}",
                {
                    "payment_intent": payment,
                    "amount": to_stripe(refund.amount_minor, order.currency),
                    "metadata": {"refund_id": str(refund.id), **metadata(order)},
                },
            )
            return _state_of_refund(made.to_dict(), order.currency)

    def charge_saved(self, order: Order, top_up: AutoTopUp) -> OrderState:
        """Charge the saved card. Raises ProviderDeclined with the bank's reason."""
        if not (top_up.customer_ref and top_up.payment_method_ref):
            raise ProviderDeclined(_("No card is saved."), code="no_payment_method")
        with _client() as client:
            # The card may be another one since an earlier attempt.
            intent = _find_intent(client, order, _customer_of(order) or top_up.customer_ref)
            if intent is None:
                made = _send(
                    client.v1.payment_intents.create,
                    f"order:{order.id}",
                    {
                        "amount": to_stripe(order.amount_minor, order.currency),
                        "currency": order.currency.lower(),
                        "customer": top_up.customer_ref,
                        "payment_method": top_up.payment_method_ref,
                        "off_session": True,
                        "confirm": True,
                        "description": order.package_name,
                        "metadata": metadata(order),
                        "expand": ["latest_charge"],
                    },
                )
                intent = made.to_dict()
            state = _state_of_intent(client, intent)
            if state.standing in (Standing.FAILED, Standing.CANCELED):
                raise ProviderDeclined(state.problem, code=state.problem_code)
            return state

    def forget_saved(self, top_up: AutoTopUp) -> None:
        """Detach the card from its customer, which is permanent."""
        with _client() as client:
            client.v1.payment_methods.detach(top_up.payment_method_ref)


@contextmanager
def _client() -> Iterator[stripe.StripeClient]:
    """Give a client, and turn its errors into ours."""
    is_page = limits.time_left() is not None
    timeout, retries = (PAGE_TIMEOUT, 0) if is_page else (TIMEOUT, RETRIES)
    try:
        yield _shared_client(settings.STRIPE_SECRET_KEY, settings.STRIPE_API_BASE, timeout, retries)
    except (stripe.CardError, stripe.InvalidRequestError) as error:
        code = getattr(error.error, "decline_code", None) or error.code or ""
        raise ProviderDeclined(error.user_message or _("Stripe refused."), code=code) from error
    except stripe.StripeError as error:
        # Its text may hold a whole page of HTML.
        answer = f"HTTP {error.http_status}" if error.http_status else "no answer"
        raise ProviderError(f"Stripe: {type(error).__name__}, {answer}.") from error
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        RecursionError,
        TypeError,
        ValueError,
    ) as error:
        raise UnreadableAnswer(
            f"Stripe gave an answer that cannot be read: {error!r}"[:300]
        ) from error


def _send(call: Callable[..., Any], subject: str, params: Any) -> Any:
    """Make something at Stripe under the key of its subject (idempotency.send)."""
    return idempotency.send(
        StripeProvider.name,
        subject,
        params,
        lambda stored, key: call(stored, {"idempotency_key": key}),
        is_definite=_is_definite,
    )


def _is_definite(error: Exception) -> bool:
    """Return whether an error is Stripe's own answer, which it repeats for the key.

    A page of HTML is not: a gateway on the way sent it, and the request may still be processed.
    """
    return (
        isinstance(error, stripe.StripeError)
        and error.http_status not in {None, *idempotency.INDEFINITE}
        and bool(part(error.json_body, "error"))
    )


@lru_cache(maxsize=4)
def _shared_client(
    key: str, base: str, timeout: tuple[float, float], retries: int
) -> stripe.StripeClient:
    """Make a client, which any number of threads may share."""
    return stripe.StripeClient(
        key,
        stripe_version=API_VERSION,
        base_addresses={"api": base},
        # The library's own defaults are a timeout of 80 seconds and no retries.
        http_client=stripe.RequestsClient(timeout=timeout),
        max_network_retries=retries,
    )


def _session_of(order: Order, return_url: str, cancel_url: str, save_method: bool) -> Any:
    """Return a new session's parameters."""
    price: dict[str, Any] = {
        "currency": order.currency.lower(),
        "unit_amount": to_stripe(order.amount_minor, order.currency),
        "product_data": {"name": order.package_name},
    }
    session: dict[str, Any] = {
        "mode": "payment",
        "success_url": return_url,
        "cancel_url": cancel_url,
        "client_reference_id": str(order.id),
        "metadata": metadata(order),
        "payment_intent_data": {"metadata": metadata(order)},
        "line_items": [{"quantity": 1, "price_data": price}],
        # Invoices need it.
        "billing_address_collection": "required",
        # Without it a payment has no invoice, and its buyer no receipt.
        "invoice_creation": {"enabled": True},
        # Otherwise Stripe may offer another currency than that of the order.
        "adaptive_pricing": {"enabled": False},
    }
    if settings.STRIPE_TAX:
        # Our prices contain the tax: the amount stays ours, and Stripe computes how much of it is tax.
        session["automatic_tax"] = {"enabled": True}
        price["tax_behavior"] = "inclusive"
    if save_method:
        session["customer_creation"] = "always"
        session["payment_intent_data"]["setup_future_usage"] = "off_session"
    return session


def _state_of_session(client: stripe.StripeClient, session: dict[str, Any]) -> OrderState:
    intent = part(session, "payment_intent")
    if session["payment_status"] in ("paid", "no_payment_required"):
        # The latter is a price of nothing: the amount then shows that it is not our order's.
        standing = Standing.PAID
    elif session["status"] == "expired":
        standing = Standing.CANCELED
    elif session["status"] == "complete":
        standing = _standing_of_intent(intent)  # paid by a method that takes days
    else:
        standing = Standing.OPEN  # after a declined card too: the page takes another one
    require(not intent or is_usable(intent.get("id")), _("id of a payment"))
    payment = word(intent.get("id"))
    currency = session["currency"].upper()
    is_paid = standing is Standing.PAID and bool(payment)
    return OrderState(
        standing=standing,
        provider_order_id=session["id"],
        amount_minor=from_stripe(session["amount_total"], currency),
        currency=currency,
        livemode=session["livemode"],
        order_id=word(part(session, "metadata").get("order_id")),
        user_id=word(part(session, "metadata").get("user_id")),
        payment_id=payment or None,
        payment_order_id=word(part(intent, "metadata").get("order_id")) if payment else None,
        tax_minor=from_stripe(part(session, "total_details").get("amount_tax") or 0, currency),
        tax_rate=_tax_rate(part(session, "total_details", "breakdown").get("taxes")),
        buyer=_buyer(part(session, "customer_details")),
        receipt_url=https_url(part(session, "invoice").get("hosted_invoice_url"))
        or https_url(part(intent, "latest_charge").get("receipt_url")),
        problem=problem_of(intent),
        refunds=_refunds(client, payment, currency) if is_paid else (),
        disputes=_disputes(client, payment, currency) if is_paid else (),
        customer_ref=reference(session.get("customer")),
        # Other methods are not saved, though they are named too.
        payment_method_ref=reference(intent.get("payment_method"))
        if intent.get("setup_future_usage") == "off_session"
        else "",
    )


def _state_of_intent(client: stripe.StripeClient, intent: dict[str, Any]) -> OrderState:
    standing = _standing_of_intent(intent)
    currency = intent["currency"].upper()
    is_paid = standing is Standing.PAID
    failure = part(intent, "last_payment_error")
    amount = intent["amount_received"] if is_paid else intent["amount"]
    return OrderState(
        standing=standing,
        provider_order_id=intent["id"],
        amount_minor=from_stripe(amount, currency),
        currency=currency,
        livemode=intent["livemode"],
        order_id=word(part(intent, "metadata").get("order_id")),
        user_id=word(part(intent, "metadata").get("user_id")),
        payment_id=intent["id"],
        buyer=_buyer(part(intent, "latest_charge", "billing_details")),
        receipt_url=https_url(part(intent, "latest_charge").get("receipt_url")),
        problem=problem_of(intent),
        problem_code=word(failure.get("decline_code") or failure.get("code")),
        refunds=_refunds(client, intent["id"], currency) if is_paid else (),
        disputes=_disputes(client, intent["id"], currency) if is_paid else (),
        customer_ref=reference(intent.get("customer")),
        payment_method_ref=reference(intent.get("payment_method")),
    )


def _buyer(details: dict[str, Any]) -> Buyer | None:
    """Return the buyer of `customer_details` or `billing_details`; None without name and address."""
    address = part(details, "address")
    town = " ".join(filter(None, (sentence(address.get(key)) for key in ("postal_code", "city"))))
    lines = [
        sentence(address.get("line1")),
        sentence(address.get("line2")),
        town,
        sentence(address.get("state")),
        sentence(address.get("country")),
    ]
    name = sentence(details.get("name"), 200)
    text = "\n".join(filter(None, lines))
    tax_ids = details.get("tax_ids")
    first = tax_ids[0] if isinstance(tax_ids, list) and tax_ids else None
    tax_id = sentence(first.get("value"), 100) if isinstance(first, dict) else ""
    return Buyer(name, text, tax_id) if name or text else None


def _tax_rate(taxes: Any) -> str:
    """Return the rates of a session's taxes: `VAT 19 %`, several with a plus."""
    rates = []
    for tax in taxes if isinstance(taxes, list) else []:
        rate = part(tax, "rate")
        if percentage := rate.get("percentage"):
            rates.append(f"{sentence(rate.get('display_name'), 20)} {percentage:g} %".strip())
    return " + ".join(rates)[:100]


def _standing_of_intent(intent: dict[str, Any]) -> Standing:
    status = intent.get("status")
    if status == "succeeded":
        return Standing.PAID
    if status == "canceled":
        return Standing.CANCELED
    if status in ("requires_payment_method", "requires_action"):
        # The buyer is not present to name another card or to confirm this one.
        return Standing.FAILED
    return Standing.OPEN


def problem_of(intent: dict[str, Any]) -> str:
    """Return the bank's sentence about the last attempt to pay; empty after a success."""
    if intent.get("status") == "succeeded":
        return ""
    return sentence(part(intent, "last_payment_error").get("message"))


def _customer_of(order: Order) -> str:
    """Return the customer whom an automatic order was charged to; empty when it never was."""
    return word(idempotency.sent(StripeProvider.name, f"order:{order.id}").get("customer"))


def _find_intent(client: stripe.StripeClient, order: Order, customer: str) -> dict[str, Any] | None:
    """Return the charge that was already made for an order, even after Stripe forgot the key."""
    found = client.v1.payment_intents.list(
        {
            "customer": customer,
            "created": {"gte": int(order.created_at.timestamp()) - 3600},  # clocks differ
            "limit": PAGE,
        }
    )
    for intent in found.auto_paging_iter():
        if part(intent.to_dict(), "metadata").get("order_id") == str(order.id):
            return client.v1.payment_intents.retrieve(intent.id, WITH_CHARGE).to_dict()
    return None


def _refunds(client: stripe.StripeClient, payment: str, currency: str) -> tuple[RefundState, ...]:
    found = client.v1.refunds.list({"payment_intent": payment, "limit": PAGE})
    return tuple(
        _state_of_refund(refund.to_dict(), currency) for refund in found.auto_paging_iter()
    )


def _state_of_refund(refund: dict[str, Any], currency: str) -> RefundState:
    return RefundState(
        id=refund["id"],
        amount_minor=from_stripe(refund["amount"], currency),
        status=REFUND_STATUSES.get(refund["status"], Refund.Status.PENDING),
        reference=word(part(refund, "metadata").get("refund_id")),
    )


def _disputes(client: stripe.StripeClient, payment: str, currency: str) -> tuple[DisputeState, ...]:
    found = client.v1.disputes.list({"payment_intent": payment, "limit": PAGE})
    states = []
    for dispute in (known.to_dict() for known in found.auto_paging_iter()):
        # One entry takes the money, a second one may bring it back; an inquiry has none.
        moved = sum(entry["amount"] for entry in dispute["balance_transactions"])
        states.append(
            DisputeState(
                id=dispute["id"],
                amount_minor=from_stripe(dispute["amount"], currency),
                status=DISPUTE_STATUSES.get(dispute["status"], "open"),
                funds_withdrawn=moved < 0,
            )
        )
    return tuple(states)


def to_stripe(minor: int, currency: str) -> int:
    """Return minor units as Stripe counts them. Raises ProviderDeclined for unsupported currencies."""
    if currency in UNSUPPORTED:
        raise ProviderDeclined(f"{currency} cannot be paid with Stripe here.", code="currency")
    return minor * 100 if currency in HUNDREDFOLD else minor


def from_stripe(amount: int, currency: str) -> int:
    """Return Stripe's amount in minor units. Raises ValueError when it is not a whole number."""
    if currency not in HUNDREDFOLD:
        return amount
    minor, rest = divmod(amount, 100)
    if rest:
        raise ValueError(f"{amount} hundredths of {currency}")
    return minor


def _is_signed(body: bytes, signature: str, secret: str) -> bool:
    try:
        return bool(
            # Without a tolerance the library accepts signatures of any age.
            stripe.WebhookSignature.verify_header(body, signature, secret, tolerance=TOLERANCE)
        )
    except (stripe.SignatureVerificationError, TypeError, ValueError):
        # TypeError: a signature that is not ASCII. ValueError: a body that is not UTF-8.
        return False
