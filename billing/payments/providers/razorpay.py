"""Razorpay: an order there for each of ours, paid on Razorpay's hosted page.

The page is reached by a form of ours and answers by one of its own: the buyer's browser posts to the
return URL, from another site, so without a session cookie and without our CSRF token. What it posts
is not even read: the return page asks `fetch`.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import razorpay
import requests
from django.conf import settings

from billing.models import AutoTopUp, Order, Refund
from billing.payments.providers.base import (
    BadSignature,
    Checkout,
    DisputeState,
    Notice,
    OrderState,
    ProviderDeclined,
    ProviderError,
    RefundState,
    Standing,
)
from billing.payments.providers.payload import header, json_object, part, word

logger = logging.getLogger(__name__)

TIMEOUT = (3, 15)  # seconds to connect, and between two bytes
PAGE = 100
# Not a no: the same request may succeed later.
TRANSIENT = {401, 408, 409, 425, 429}


class RazorpayProvider:
    """See base.Provider."""

    name = "razorpay"
    label = "Razorpay"

    @property
    def livemode(self) -> bool:
        """Whether the key is of the live mode."""
        return _is_live()

    def create_checkout(
        self, order: Order, *, return_url: str, cancel_url: str, save_method: bool = False
    ) -> Checkout:
        """Make an order there, or find ours by its receipt: Razorpay has no key for repeating this.

        `return_url` must take a POST without session and token; an order that is paid already leads
        there by itself. `save_method` has no effect.
        """
        with _asking() as client:
            known = order.provider_order_id or _find_order(client, order)
            theirs = client.order.fetch(known) if known else client.order.create(_order_of(order))
            provider_order_id, is_paid = theirs["id"], theirs["status"] == "paid"
        if is_paid:
            return Checkout(provider_order_id=provider_order_id, url=return_url)
        return Checkout(
            provider_order_id=provider_order_id,
            url=f"{settings.RAZORPAY_API_BASE}/v1/checkout/embedded",
            fields={
                "key_id": settings.RAZORPAY_KEY_ID,
                "order_id": provider_order_id,
                "amount": str(order.amount_minor),
                "currency": order.currency,
                "name": settings.SITE_NAME,
                "description": order.package_name,
                "callback_url": return_url,
                "cancel_url": cancel_url,
            },
        )

    def fetch(self, order: Order) -> OrderState:
        """How the order stands. Razorpay's orders never expire: one nobody pays stays open."""
        with _asking() as client:
            provider_order_id = order.provider_order_id or _find_order(client, order)
            if not provider_order_id:
                return _unknown(order)
            theirs = client.order.fetch(provider_order_id)
            payments = client.order.payments(provider_order_id)["items"]
            return _state(client, order, theirs, payments)

    def verify(self, body: bytes, headers: Mapping[str, str]) -> Notice:
        """Read a webhook that was signed with one of our secrets.

        The signature covers neither a time nor the event's id, which comes in a header: whoever saw
        one webhook can send it again under another id, so the body's hash must be unique too.
        """
        signature = header(headers, "X-Razorpay-Signature")
        if not any(_is_signed(body, signature, key) for key in settings.RAZORPAY_WEBHOOK_SECRETS):
            raise BadSignature("The webhook is not signed by Razorpay.")
        event = json_object(body)
        if event.get("entity") != "event":
            raise BadSignature("The webhook is signed, but is not an event.")
        digest = hashlib.sha256(body).hexdigest()
        return _notice(event, word(header(headers, "X-Razorpay-Event-Id")) or digest, digest)

    def refund(self, order: Order, refund: Refund) -> RefundState:
        """Send money back."""
        payment = order.provider_payment_id
        if not payment:
            raise ProviderDeclined("The order has no payment.", code="no_payment")
        with _asking() as client:
            for known in _refunds(client, payment):
                if known.reference == str(refund.id):
                    return known
            made = client.payment.refund(
                payment,
                {
                    "amount": refund.amount_minor,
                    "speed": "normal",
                    "receipt": str(refund.id),
                    "notes": {"refund_id": str(refund.id), **_notes(order)},
                },
                headers={"X-Refund-Idempotency": f"refund-{refund.id}"},
            )
            return _state_of_refund(made)

    def charge_saved(self, order: Order, top_up: AutoTopUp) -> OrderState:
        """Not offered: Razorpay asks for a mandate with limits of its own for every such charge."""
        raise ProviderDeclined(
            "Automatic top-ups are not possible with Razorpay.", code="not_offered"
        )


class _Session(requests.Session):
    """A session that speaks our errors.

    The library would wait for ever, prints every error of its own, and stumbles over answers that
    are not JSON. It does not look at errors that are not of its libraries.
    """

    def request(self, *args: Any, **options: Any) -> requests.Response:
        options.setdefault("timeout", TIMEOUT)
        try:
            response = super().request(*args, **options)
            answer = response.json()
        except requests.JSONDecodeError as error:
            raise ProviderError(
                f"Razorpay: HTTP {response.status_code} without an answer that can be read."
            ) from error
        except requests.RequestException as error:
            raise ProviderError(f"Razorpay: {type(error).__name__}, no answer.") from error
        if response.ok and isinstance(answer, dict):
            return response
        raise _refusal(response.status_code, part(answer, "error"))


def _refusal(status: int, error: dict[str, Any]) -> ProviderError:
    if status in TRANSIENT or not 400 <= status < 500:
        return ProviderError(f"Razorpay: HTTP {status}.")
    reason = error.get("reason")
    code = reason if reason and reason != "NA" else error.get("code")
    return ProviderDeclined(str(error.get("description") or "Razorpay refused."), code=code or "")


@contextmanager
def _asking() -> Iterator[razorpay.Client]:
    """A client for one piece of work, on one connection."""
    with _Session() as session:
        try:
            # Its enable_retry() stays off: it repeats orders and refunds without any key.
            yield razorpay.Client(
                session=session,
                auth=(settings.RAZORPAY_KEY_ID, settings.RAZORPAY_KEY_SECRET),
                base_url=settings.RAZORPAY_API_BASE,
            )
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise ProviderError("Razorpay gave an answer that cannot be read.") from error


def _order_of(order: Order) -> dict[str, Any]:
    return {
        "amount": order.amount_minor,
        "currency": order.currency,
        "receipt": str(order.id),
        "notes": _notes(order),
        # What is only authorized is given back to the buyer after some days.
        "payment": {
            "capture": "automatic",
            "capture_options": {"automatic_expiry_period": 7200, "refund_speed": "normal"},
        },
    }


def _notes(order: Order) -> dict[str, str]:
    return {"order_id": str(order.id), "user_id": str(order.user_id)}


def _find_order(client: razorpay.Client, order: Order) -> str:
    for theirs in client.order.all({"receipt": str(order.id), "count": PAGE})["items"]:
        if theirs["receipt"] == str(order.id):
            return str(theirs["id"])
    return ""


def _is_live() -> bool:
    """Neither orders nor webhooks tell their mode; only what the key can see is there at all."""
    return settings.RAZORPAY_KEY_ID.startswith("rzp_live_")


def _unknown(order: Order) -> OrderState:
    return OrderState(
        standing=Standing.OPEN,
        provider_order_id="",
        amount_minor=order.amount_minor,
        currency=order.currency,
        livemode=_is_live(),
        order_id=str(order.id),
        user_id=str(order.user_id),
    )


def _state(
    client: razorpay.Client, order: Order, theirs: dict[str, Any], payments: list[dict[str, Any]]
) -> OrderState:
    captured = _captured(order, payments)
    standing = Standing.PAID if captured else _standing_unpaid(payments)
    last = max(payments, key=lambda payment: payment["created_at"], default={})
    amount, currency = theirs["amount"], theirs["currency"]
    if captured:
        # A payment may contain a fee on top, which buyers bear; the order's sum does not.
        amount = theirs["amount_paid"] if theirs["status"] == "paid" else captured["amount"]
        currency = captured["currency"]
    return OrderState(
        standing=standing,
        provider_order_id=theirs["id"],
        amount_minor=amount,
        currency=currency,
        livemode=_is_live(),
        order_id=word(part(theirs, "notes").get("order_id")),
        user_id=word(part(theirs, "notes").get("user_id")),
        payment_id=captured["id"] if captured else None,
        problem="" if captured else str(last.get("error_description") or ""),
        refunds=_refunds(client, captured["id"]) if captured else (),
        disputes=_disputes(client, captured) if captured else (),
    )


def _captured(order: Order, payments: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The payment that counts: the one we know already, else the first one."""
    captured = [payment for payment in payments if payment["status"] in ("captured", "refunded")]
    captured.sort(key=lambda payment: payment["created_at"])
    for payment in captured:
        if payment["id"] == order.provider_payment_id:
            return payment
    return captured[0] if captured else None


def _standing_unpaid(payments: list[dict[str, Any]]) -> Standing:
    # A failed payment may still become a good one: banks are asked again for days.
    if payments and all(payment["status"] == "failed" for payment in payments):
        return Standing.FAILED
    return Standing.OPEN


def _refunds(client: razorpay.Client, payment: str) -> tuple[RefundState, ...]:
    found = client.payment.fetch_multiple_refund(payment, {"count": PAGE})
    return tuple(_state_of_refund(refund) for refund in found["items"])


def _state_of_refund(refund: dict[str, Any]) -> RefundState:
    status = {
        "processed": Refund.Status.SUCCEEDED,
        "failed": Refund.Status.FAILED,
    }.get(refund["status"], Refund.Status.PENDING)
    return RefundState(
        id=refund["id"],
        amount_minor=refund["amount"],
        status=status,
        reference=word(part(refund, "notes").get("refund_id")),
    )


def _disputes(client: razorpay.Client, payment: dict[str, Any]) -> tuple[DisputeState, ...]:
    """The disputes of a payment, among all since it was made: they cannot be asked for by payment."""
    found: list[DisputeState] = []
    skip = 0
    while True:
        try:
            page = client.dispute.all({"from": payment["created_at"], "count": PAGE, "skip": skip})[
                "items"
            ]
        except ProviderDeclined:
            # Not every account may list them, and none would then get its credits.
            logger.exception("Razorpay does not tell which payments are disputed.")
            return ()
        found += [
            _state_of_dispute(dispute) for dispute in page if dispute["payment_id"] == payment["id"]
        ]
        if len(page) < PAGE:
            return tuple(found)
        skip += PAGE


def _state_of_dispute(dispute: dict[str, Any]) -> DisputeState:
    deducted = dispute["amount_deducted"]
    status = dispute["status"]
    if status == "closed":
        status = "lost" if deducted else "won"
    return DisputeState(
        id=dispute["id"],
        amount_minor=dispute["amount"],
        status=status if status in ("won", "lost") else "open",
        funds_withdrawn=bool(deducted) and status != "won",
    )


def _is_signed(body: bytes, signature: str, secret: str) -> bool:
    try:
        # It wants text, and gives a TypeError for a signature that is not ASCII.
        return bool(
            razorpay.Utility().verify_webhook_signature(body.decode("utf-8"), signature, secret)
        )
    except (razorpay.errors.SignatureVerificationError, TypeError, ValueError):
        return False


def _notice(event: dict[str, Any], event_id: str, digest: str) -> Notice:
    event_type = word(event.get("event"), 100)
    if not event_type:
        raise BadSignature("The webhook is signed, but names no event.")
    entities = {
        name: part(event, "payload", name, "entity")
        for name in ("order", "payment", "refund", "dispute")
    }
    payment_id = word(entities["payment"].get("id"))
    for name in ("refund", "dispute"):
        payment_id = payment_id or word(entities[name].get("payment_id"))
    return Notice(
        event_id=event_id,
        event_type=event_type,
        livemode=_is_live(),
        order_id=next(
            (
                found
                for name in ("order", "payment", "refund")
                if (found := word(part(entities[name], "notes").get("order_id")))
            ),
            "",
        ),
        provider_order_id=word(entities["order"].get("id"))
        or word(entities["payment"].get("order_id")),
        payment_id=payment_id,
        body_sha256=digest,
    )
