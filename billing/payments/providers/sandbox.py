"""A payment provider for development: its bank is a page of ours, and no real money moves.

It is as awkward as the others on purpose: webhooks come by HTTP, signed, twice for one payment,
and some payments arrive late. SandboxPayment stores the bank's side. Refused unless DEBUG is on.
"""

from __future__ import annotations

import hashlib
import hmac
import http.client
import json
import secrets
import time
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import urljoin, urlsplit

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.db import transaction
from django.urls import reverse
from django.utils import timezone
from django.utils.functional import Promise
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from billing.models import AutoTopUp, Order, Refund, SandboxPayment
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
    unknown_order,
)
from billing.payments.providers.payload import identifier, json_object

Status = SandboxPayment.Status

SIGNATURE = "Sandbox-Signature"
TOLERANCE = 300  # seconds that a signature is valid
TIMEOUT = 10.0  # seconds for our own site to accept a webhook
LATE = timedelta(seconds=20)  # how much later a late payment arrives

# Saved methods: one that works, and two that do not, to try what happens then.
CARD = "sandbox-card"
DECLINED_CARD = "sandbox-card-declined"
ASKING_CARD = "sandbox-card-asks"

STANDINGS = {
    Status.OPEN: Standing.OPEN,
    Status.PAID: Standing.PAID,
    Status.FAILED: Standing.FAILED,
    Status.CLOSED: Standing.CANCELED,
}


class SandboxProvider:
    """See base.PaymentProvider. Raises ImproperlyConfigured when DEBUG is off."""

    name = "sandbox"
    label: str | Promise = gettext_lazy("Test bank")
    livemode = False

    def __init__(self) -> None:
        if not settings.DEBUG:
            raise ImproperlyConfigured("The sandbox gives credits for nothing: it needs DEBUG=1.")

    def create_checkout(
        self, order: Order, *, return_url: str, cancel_url: str, save_method: bool = False
    ) -> Checkout:
        """Open a payment, or find the one of the same order."""
        payment = _open(order, return_url=return_url, cancel_url=cancel_url)
        return Checkout(
            payment.pk, urljoin(return_url, reverse("billing:sandbox", args=[payment.pk]))
        )

    def fetch(self, order: Order) -> OrderState:
        """Return the state of an order at the bank."""
        if order.provider_order_id:
            payment = SandboxPayment.objects.filter(pk=order.provider_order_id).first()
            if payment is None:
                raise ProviderError(
                    _("the test bank has no payment %(provider_order_id)s")
                    % {"provider_order_id": order.provider_order_id}
                )
            return _state(payment)
        payment = SandboxPayment.objects.filter(idempotency_key=f"order:{order.pk}").first()
        return _state(payment) if payment else unknown_order(order, livemode=False)

    def verify(self, body: bytes, headers: Mapping[str, str]) -> Notice:
        """Read a webhook of the bank."""
        signature = headers.get(SIGNATURE, "")
        timestamp = signature.removeprefix("t=").partition(",")[0]
        if not (timestamp.isascii() and timestamp.isdecimal() and len(timestamp) < 12):
            raise BadSignature(_("there is no signature"))
        if not hmac.compare_digest(
            signature.encode(errors="replace"), sign(body, int(timestamp)).encode()
        ):
            raise BadSignature(_("the signature is wrong"))
        if abs(time.time() - int(timestamp)) > TOLERANCE:
            raise BadSignature(_("the signature is old"))
        event = json_object(body)
        event_id, event_type = identifier(event.get("id")), identifier(event.get("type"), 100)
        if not event_id or not event_type or event.get("livemode") is not False:
            raise BadSignature(_("this is no event"))
        return Notice(
            event_id=event_id,
            event_type=event_type,
            livemode=False,
            order_id=identifier(event.get("order_id")),
            provider_order_id=identifier(event.get("checkout_id")),
            payment_id=identifier(event.get("payment_id")),
        )

    def refund(self, order: Order, refund: Refund) -> RefundState:
        """Send money back, once for each of our refunds."""
        with transaction.atomic():
            payment = _lock(order.provider_order_id or "")
            for known in payment.refunds:
                if known["reference"] == str(refund.pk):
                    return _refund_state(known)
            return _refund_state(_add_refund(payment, refund.amount_minor, str(refund.pk)))

    def charge_saved(self, order: Order, top_up: AutoTopUp) -> OrderState:
        """Charge the saved card, once for each order; two special cards refuse."""
        if top_up.payment_method_ref == DECLINED_CARD:
            raise ProviderDeclined(_("The card was declined."), code="card_declined")
        if top_up.payment_method_ref == ASKING_CARD:
            raise ProviderDeclined(_("The bank asks to confirm."), code="authentication_required")
        payment = _open(order, return_url="", cancel_url="")
        pay(payment.pk)
        payment.refresh_from_db()
        return _state(payment)

    def forget_saved(self, top_up: AutoTopUp) -> None:
        """Do nothing: the sandbox's cards are words."""


def _open(order: Order, *, return_url: str, cancel_url: str) -> SandboxPayment:
    payment, _is_new = SandboxPayment.objects.get_or_create(
        idempotency_key=f"order:{order.pk}",
        defaults={
            "id": f"sbx_{secrets.token_hex(12)}",
            "order_id": order.pk,
            "user_id": order.user_id,
            "amount_minor": order.amount_minor,
            "currency": order.currency,
            "return_url": return_url,
            "cancel_url": cancel_url,
        },
    )
    return payment


def _state(payment: SandboxPayment) -> OrderState:
    is_paid = payment.status == Status.PAID
    return OrderState(
        standing=STANDINGS[Status(payment.status)],
        provider_order_id=payment.pk,
        amount_minor=payment.amount_minor,
        currency=payment.currency,
        livemode=False,
        order_id=str(payment.order_id),
        user_id=str(payment.user_id),
        payment_id=payment.payment_id,
        problem=_("The test bank declined the payment.") if payment.status == Status.FAILED else "",
        refunds=tuple(_refund_state(refund) for refund in payment.refunds),
        disputes=tuple(DisputeState(**dispute) for dispute in payment.disputes),
        customer_ref=f"sandbox-customer-{payment.user_id}" if is_paid else "",
        payment_method_ref=CARD if is_paid else "",
    )


def _refund_state(refund: Mapping[str, Any]) -> RefundState:
    return RefundState(
        id=refund["id"],
        amount_minor=refund["amount_minor"],
        status=Refund.Status(refund["status"]),
        reference=refund["reference"],
    )


# --- Events at the bank. Each returns the types of the webhooks to send -------------------------


def pay(payment_id: str) -> tuple[str, ...]:
    """The buyer pays. A payment that was declined or left may be paid after all."""
    with transaction.atomic():
        payment = _lock(payment_id)
        if payment.status == Status.PAID:
            return ()
        payment.status = Status.PAID
        payment.payment_id = f"sbxpay_{secrets.token_hex(10)}"
        payment.pay_at = None
        payment.save()
    return ("checkout.completed", "payment.succeeded")


def pay_later(payment_id: str) -> None:
    """The buyer leaves, and the money arrives after LATE (see `collect_late`)."""
    SandboxPayment.objects.filter(pk=payment_id).exclude(status=Status.PAID).update(
        pay_at=timezone.now() + LATE
    )


def collect_late(now: datetime) -> list[tuple[str, tuple[str, ...]]]:
    """Let the late payments arrive that are due. Returns their ids and webhooks."""
    due = SandboxPayment.objects.filter(pay_at__lte=now).values_list("pk", flat=True)
    return [(payment_id, pay(payment_id)) for payment_id in due]


def decline(payment_id: str) -> tuple[str, ...]:
    """The bank declines."""
    return _end(payment_id, Status.FAILED, ("payment.failed",))


def close(payment_id: str) -> tuple[str, ...]:
    """The buyer leaves without paying."""
    return _end(payment_id, Status.CLOSED, ("checkout.closed",))


def _end(payment_id: str, status: Status, events: tuple[str, ...]) -> tuple[str, ...]:
    ended = SandboxPayment.objects.filter(pk=payment_id, status=Status.OPEN).update(
        status=status, pay_at=None
    )
    return events if ended else ()


def refund_there(payment_id: str, amount_minor: int, *, status: str = "succeeded") -> str:
    """Refund at the bank, without us. Returns the refund's id there."""
    with transaction.atomic():
        return str(_add_refund(_lock(payment_id), amount_minor, "", status)["id"])


def change_refund(payment_id: str, refund_id: str, status: str) -> None:
    """Give a refund at the bank another status."""
    with transaction.atomic():
        payment = _lock(payment_id)
        for refund in payment.refunds:
            if refund["id"] == refund_id:
                refund["status"] = status
                if status == "failed":
                    payment.refunded_minor -= refund["amount_minor"]
        payment.save()


def _add_refund(
    payment: SandboxPayment, amount_minor: int, reference: str, status: str = "succeeded"
) -> dict[str, Any]:
    if (
        payment.status != Status.PAID
        or payment.refunded_minor + amount_minor > payment.amount_minor
    ):
        raise ProviderDeclined(
            _("The amount is more than can be refunded."), code="amount_too_large"
        )
    refund = {
        "id": f"sbxre_{secrets.token_hex(10)}",
        "amount_minor": amount_minor,
        "status": status,
        "reference": reference,
    }
    payment.refunds.append(refund)
    payment.refunded_minor += amount_minor
    payment.save()
    return refund


def dispute(payment_id: str, amount_minor: int | None = None) -> str:
    """The buyer's bank takes the money back. Returns the dispute's id."""
    with transaction.atomic():
        payment = _lock(payment_id)
        dispute_id = f"sbxdp_{secrets.token_hex(10)}"
        payment.disputes.append(
            {
                "id": dispute_id,
                "amount_minor": amount_minor or payment.amount_minor,
                "status": "open",
                "funds_withdrawn": True,
            }
        )
        payment.save()
    return dispute_id


def decide(payment_id: str, dispute_id: str, *, is_won: bool) -> None:
    """A dispute ends: with us (the money comes back) or with the buyer."""
    with transaction.atomic():
        payment = _lock(payment_id)
        for known in payment.disputes:
            if known["id"] == dispute_id:
                known["status"] = "won" if is_won else "lost"
                known["funds_withdrawn"] = not is_won
        payment.save()


def _lock(payment_id: str) -> SandboxPayment:
    payment = SandboxPayment.objects.select_for_update().filter(pk=payment_id).first()
    if payment is None:
        raise ProviderError(
            _("the test bank has no payment %(payment_id)s") % {"payment_id": payment_id}
        )
    return payment


# --- Webhooks ----------------------------------------------------------------------------------


def make_webhook(payment: SandboxPayment, event_type: str) -> tuple[bytes, dict[str, str]]:
    """Return body and headers of an event, signed now.

    As with real providers, an event about a refund or a dispute names the payment only.
    """
    event = {
        "id": f"sbxev_{secrets.token_hex(12)}",
        "type": event_type,
        "created": int(time.time()),
        "livemode": False,
        "payment_id": payment.payment_id or "",
    }
    if event_type.startswith(("checkout.", "payment.")):
        event |= {"order_id": str(payment.order_id), "checkout_id": payment.pk}
    body = json.dumps(event).encode()
    return body, {SIGNATURE: sign(body, int(time.time()))}


def sign(body: bytes, timestamp: int) -> str:
    """Return the header that proves a body's origin and time of sending."""
    key = hashlib.sha256(
        b"billing.payments.providers.sandbox" + settings.SECRET_KEY.encode()
    ).digest()
    digest = hmac.new(key, b"%d." % timestamp + body, hashlib.sha256).hexdigest()
    return f"t={timestamp},v1={digest}"


def send_webhook(payment_id: str, event_type: str) -> None:
    """Report an event to our own site by HTTP. Raises ProviderError when it is not accepted."""
    payment = SandboxPayment.objects.get(pk=payment_id)
    address = urlsplit(urljoin(payment.return_url, reverse("billing:webhook", args=["sandbox"])))
    if not address.hostname:
        return  # a charge without a buyer: the answer to the call was enough
    is_secure = address.scheme == "https"
    kind = http.client.HTTPSConnection if is_secure else http.client.HTTPConnection
    connection = kind(address.hostname, address.port, timeout=TIMEOUT)
    body, headers = make_webhook(payment, event_type)
    try:
        connection.request("POST", address.path, body, headers)
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        raise ProviderError(_("the webhook was not sent: %(error)s") % {"error": error}) from error
    finally:
        connection.close()
    if status != http.client.OK:
        raise ProviderError(_("the webhook was answered with %(status)s") % {"status": status})
