"""Razorpay: an order there for each of ours, paid on Razorpay's hosted page.

Our form leads to the page, and a form of its own leads back: the buyer's browser posts to the return
URL from another site, so without a session cookie and without our CSRF token. The posted data are
not even read: the return page calls `fetch`.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

import razorpay
import requests
from django.conf import settings
from django.utils.functional import Promise
from django.utils.translation import gettext as _

from billing.models import AutoTopUp, Order, Refund
from billing.payments.providers import idempotency
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
    UnreadableAnswer,
    is_usable,
    metadata,
    require,
    unknown_order,
)
from billing.payments.providers.payload import (
    foreign_identifier,
    header,
    identifier,
    json_object,
    part,
    sentence,
    word,
)
from chatproject.lib.db import limits

logger = logging.getLogger(__name__)

TIMEOUT = (3, 15)  # seconds to connect, and between two bytes
PAGE_TIMEOUT = (2, 5)  # the same for a page
PAGE = 100
# Not final: the same request may succeed later.
TRANSIENT = {401, 408, 409, 425, 429}

PAID_STATUSES = ("captured", "refunded")
REFUND_STATUSES = {"processed": Refund.Status.SUCCEEDED, "failed": Refund.Status.FAILED}


class RazorpayProvider:
    """See base.PaymentProvider."""

    name = "razorpay"
    label: str | Promise = "Razorpay"

    @property
    def livemode(self) -> bool:
        """Whether the key is of the live mode."""
        return is_live()

    def create_checkout(
        self, order: Order, *, return_url: str, cancel_url: str, save_method: bool = False
    ) -> Checkout:
        """Make an order there, or find ours by its receipt: Razorpay has no idempotency key for this.

        `return_url` must accept a POST without session and token; an order that is paid already
        leads there directly. `save_method` has no effect.
        """
        with _client() as client:
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
        """Return the order's state. Razorpay's orders never expire: an unpaid one stays open."""
        with _client() as client:
            provider_order_id = order.provider_order_id or _find_order(client, order)
            if not provider_order_id:
                return unknown_order(order, livemode=is_live())
            theirs = client.order.fetch(provider_order_id)
            payments = client.order.payments(provider_order_id)["items"]
            return _state_of_order(client, order, theirs, payments)

    def verify(self, body: bytes, headers: Mapping[str, str]) -> Notice:
        """Read a webhook that was signed with one of our secrets.

        The signature covers neither a time nor the event's id, which comes in a header: a captured
        webhook can be replayed under another id, so the body's hash must be unique too.
        """
        signature = header(headers, "X-Razorpay-Signature")
        if not any(_is_signed(body, signature, key) for key in settings.RAZORPAY_WEBHOOK_SECRETS):
            raise BadSignature(_("The webhook is not signed by Razorpay."))
        event = json_object(body)
        if event.get("entity") != "event":
            raise BadSignature(_("The webhook is signed, but is not an event."))
        digest = hashlib.sha256(body).hexdigest()
        return _notice(event, word(header(headers, "X-Razorpay-Event-Id")) or digest, digest)

    def refund(self, order: Order, refund: Refund) -> RefundState:
        """Send money back."""
        payment = order.provider_payment_id
        if not payment:
            raise ProviderDeclined(_("The order has no payment."), code="no_payment")
        with _client() as client:
            for known in _refunds(client, payment):
                if known.reference == str(refund.id):
                    return known
            made = idempotency.send(
                self.name,
                f"refund-{refund.id}",
                {
                    "amount": refund.amount_minor,
                    "speed": "normal",
                    "receipt": str(refund.id),
                    "notes": {"refund_id": str(refund.id), **metadata(order)},
                },
                lambda params, key: client.payment.refund(
                    payment, params, headers={"X-Refund-Idempotency": key}
                ),
                is_definite=lambda error: isinstance(error, ProviderDeclined | _ServerError),
            )
            return _state_of_refund(made)

    def charge_saved(self, order: Order, top_up: AutoTopUp) -> OrderState:
        """Refuse: Razorpay requires a mandate with limits of its own for every such charge."""
        raise ProviderDeclined(
            _("Automatic top-ups are not possible with Razorpay."), code="not_offered"
        )

    def forget_saved(self, top_up: AutoTopUp) -> None:
        """Do nothing: Razorpay saves no method."""


class _ServerError(ProviderError):
    """An error of Razorpay's server, in its own words: whether the request was processed is unknown."""


class _Session(requests.Session):
    """An HTTP session that raises our errors.

    The library has no timeout, prints every error of its own, and fails on answers that are not
    JSON. It passes on exceptions of other libraries, such as ours.
    """

    def request(self, *args: Any, **options: Any) -> requests.Response:
        is_page = limits.time_left() is not None
        options.setdefault("timeout", PAGE_TIMEOUT if is_page else TIMEOUT)
        try:
            response = super().request(*args, **options)
            answer = response.json()
        except (requests.JSONDecodeError, RecursionError) as error:
            raise ProviderError(
                _("Razorpay: HTTP %(status_code)s without an answer that can be read.")
                % {"status_code": response.status_code}
            ) from error
        except requests.RequestException as error:
            raise ProviderError(
                _("Razorpay: %(name)s, no answer.") % {"name": type(error).__name__}
            ) from error
        if response.ok and isinstance(answer, dict):
            return response
        status, problem = response.status_code, part(answer, "error")
        if problem and status >= 500:
            raise _ServerError(f"Razorpay: HTTP {status}.")
        if status in TRANSIENT or not 400 <= status < 500:
            raise ProviderError(f"Razorpay: HTTP {status}.")
        reason = problem.get("reason")
        code = reason if reason and reason != "NA" else problem.get("code")
        raise ProviderDeclined(
            str(problem.get("description") or _("Razorpay refused.")), code=code or ""
        )


@contextmanager
def _client() -> Iterator[razorpay.Client]:
    """Give a client on one connection, and turn its errors into ours."""
    with _Session() as session:
        try:
            # Its enable_retry() stays off: it repeats orders and refunds without an idempotency key.
            yield razorpay.Client(
                session=session,
                auth=(settings.RAZORPAY_KEY_ID, settings.RAZORPAY_KEY_SECRET),
                base_url=settings.RAZORPAY_API_BASE,
            )
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise UnreadableAnswer(
                f"Razorpay gave an answer that cannot be read: {error!r}"[:300]
            ) from error


def _order_of(order: Order) -> dict[str, Any]:
    return {
        "amount": order.amount_minor,
        "currency": order.currency,
        "receipt": str(order.id),
        "notes": metadata(order),
        # A payment that is only authorized is returned to the buyer after some days.
        "payment": {
            "capture": "automatic",
            "capture_options": {"automatic_expiry_period": 7200, "refund_speed": "normal"},
        },
    }


def _find_order(client: razorpay.Client, order: Order) -> str:
    for theirs in client.order.all({"receipt": str(order.id), "count": PAGE})["items"]:
        if theirs["receipt"] == str(order.id):
            return str(theirs["id"])
    return ""


def is_live() -> bool:
    """Return whether the key is of the live mode: neither orders nor webhooks contain theirs."""
    return settings.RAZORPAY_KEY_ID.startswith("rzp_live_")


def _state_of_order(
    client: razorpay.Client, order: Order, theirs: dict[str, Any], payments: list[dict[str, Any]]
) -> OrderState:
    require(all(is_usable(payment["id"]) for payment in payments), _("id of a payment"))
    captured = _captured(order, payments)
    # A failed payment may still succeed: banks answer for days. So all of them must have failed.
    has_failed = bool(payments) and all(payment["status"] == "failed" for payment in payments)
    unpaid = Standing.FAILED if has_failed else Standing.OPEN
    last = max(payments, key=lambda payment: payment["created_at"], default={})
    amount, currency = theirs["amount"], theirs["currency"]
    if captured:
        # A payment may contain a fee on top, which buyers bear; the order's sum does not.
        amount = theirs["amount_paid"] if theirs["status"] == "paid" else captured["amount"]
        if len([one for one in payments if one["status"] in PAID_STATUSES]) > 1:
            # Each of them paid the order.
            amount = min(amount, theirs["amount"])
        currency = captured["currency"]
    named = None  # our order that the payment names, by Razorpay's order or by its notes
    if captured and captured["order_id"] != theirs["id"]:
        named = word(captured["order_id"])
    elif captured:
        named = word(part(captured, "notes").get("order_id")) or str(order.id)
    return OrderState(
        standing=Standing.PAID if captured else unpaid,
        provider_order_id=theirs["id"],
        amount_minor=amount,
        currency=currency,
        livemode=is_live(),
        order_id=word(part(theirs, "notes").get("order_id")),
        user_id=word(part(theirs, "notes").get("user_id")),
        payment_id=captured["id"] if captured else None,
        payment_order_id=named,
        other_payments=tuple(
            payment["id"]
            for payment in payments
            if payment["status"] == "captured" and payment is not captured
        ),
        tax_minor=_tax(amount),
        tax_rate=f"{settings.RAZORPAY_TAX_PERCENT.normalize():f} %" if _tax(amount) else "",
        problem="" if captured else sentence(last.get("error_description")),
        refunds=_refunds(client, captured["id"]) if captured else (),
        disputes=_disputes(client, captured) if captured else (),
    )


def _captured(order: Order, payments: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the payment that counts: the stored one, else the first one."""
    captured = [payment for payment in payments if payment["status"] in PAID_STATUSES]
    captured.sort(key=lambda payment: payment["created_at"])
    for payment in captured:
        if payment["id"] == order.provider_payment_id:
            return payment
    return captured[0] if captured else None


def _tax(amount: int) -> int:
    """Return the tax that an amount contains; Razorpay computes none."""
    percent: Decimal = settings.RAZORPAY_TAX_PERCENT
    return int((amount * percent / (100 + percent)).quantize(Decimal(1), ROUND_HALF_UP))


def _refunds(client: razorpay.Client, payment: str) -> tuple[RefundState, ...]:
    found: list[RefundState] = []
    while True:
        page = client.payment.fetch_multiple_refund(payment, {"count": PAGE, "skip": len(found)})
        found += map(_state_of_refund, page["items"])
        if len(page["items"]) < PAGE:
            return tuple(found)


def _state_of_refund(refund: dict[str, Any]) -> RefundState:
    return RefundState(
        id=refund["id"],
        amount_minor=refund["amount"],
        status=REFUND_STATUSES.get(refund["status"], Refund.Status.PENDING),
        reference=word(part(refund, "notes").get("refund_id")),
    )


def _disputes(client: razorpay.Client, payment: dict[str, Any]) -> tuple[DisputeState, ...]:
    """Return the disputes of a payment, out of all since it was made: the API has no other filter."""
    since = payment["created_at"]
    found: list[DisputeState] = []
    skip = 0
    while True:
        try:
            page = client.dispute.all({"from": since, "count": PAGE, "skip": skip})["items"]
        except ProviderDeclined:
            # Some accounts may not list disputes. Failing here would keep all credits from their buyers.
            logger.exception("Razorpay refuses to list disputes, so they are not followed.")
            return ()
        found += [
            _state_of_dispute(dispute) for dispute in page if dispute["payment_id"] == payment["id"]
        ]
        if len(page) < PAGE:
            return tuple(found)
        skip += PAGE


def _state_of_dispute(dispute: dict[str, Any]) -> DisputeState:
    deducted, status = dispute["amount_deducted"], dispute["status"]
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
        # It takes text, and raises TypeError for a signature that is not ASCII.
        return bool(
            razorpay.Utility().verify_webhook_signature(body.decode("utf-8"), signature, secret)
        )
    except (razorpay.errors.SignatureVerificationError, TypeError, ValueError):
        return False


def _notice(event: dict[str, Any], event_id: str, digest: str) -> Notice:
    event_type = identifier(event.get("event"), 100)
    if not event_type:
        raise BadSignature(_("The webhook is signed, but names no event."))
    entities = {
        name: part(event, "payload", name, "entity")
        for name in ("order", "payment", "refund", "dispute")
    }
    payment_id = identifier(entities["payment"].get("id"))
    for name in ("refund", "dispute"):
        payment_id = payment_id or identifier(entities[name].get("payment_id"))
    notes = (part(entities[name], "notes") for name in ("order", "payment", "refund"))
    order_ids = [foreign_identifier(note.get("order_id")) for note in notes]
    return Notice(
        event_id=event_id,
        event_type=event_type,
        livemode=is_live(),
        order_id=next(filter(None, order_ids), ""),
        provider_order_id=identifier(entities["order"].get("id"))
        or identifier(entities["payment"].get("order_id")),
        payment_id=payment_id,
        body_sha256=digest,
    )
