"""The interface of payment providers, in billing's own terms.

A provider reports facts and decides nothing: `fetch` returns the state of an order at the provider,
and billing.payments.checkout draws the conclusions. No database transaction is open while a provider
is called.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from billing.models import AutoTopUp, Order, Refund


class ProviderError(Exception):
    """The provider was unreachable or sent no usable answer. The outcome is unknown: ask again."""


class ProviderDeclined(ProviderError):
    """The provider refused for good; `code` is its own word for the reason."""

    def __init__(self, message: str, *, code: str = "") -> None:
        self.code = code
        super().__init__(message)


class ProviderNotConfigured(ProviderError, LookupError):
    """No provider of this name is configured, perhaps not any longer."""


class BadSignature(Exception):
    """A webhook is not from the provider, not complete, too old, or of the other mode."""


class Standing(enum.Enum):
    """The state of a payment at the provider."""

    OPEN = "open"
    PAID = "paid"
    FAILED = "failed"
    CANCELED = "canceled"


@dataclass(frozen=True, slots=True)
class Checkout:
    """The page to send the buyer to: a link, or (with `fields`) a form to post there."""

    provider_order_id: str
    url: str
    fields: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RefundState:
    """A refund as the provider has it. `reference` is our refund's id, where the provider has it."""

    id: str
    amount_minor: int
    status: Refund.Status
    reference: str = ""


@dataclass(frozen=True, slots=True)
class DisputeState:
    """A disputed charge. `funds_withdrawn`: the bank took the money (an inquiry alone takes none)."""

    id: str
    amount_minor: int
    status: str  # a value of Dispute.Status
    funds_withdrawn: bool


@dataclass(frozen=True, slots=True)
class OrderState:
    """The state of one of our orders at the provider, with its refunds and disputes."""

    standing: Standing
    provider_order_id: str
    amount_minor: int
    currency: str  # upper case
    livemode: bool
    order_id: str = ""  # ours, from the metadata
    user_id: str = ""  # ours, from the metadata
    payment_id: str | None = None
    tax_minor: int = 0
    receipt_url: str = ""
    problem: str = ""  # a sentence for the buyer, when it failed
    refunds: tuple[RefundState, ...] = ()
    disputes: tuple[DisputeState, ...] = ()
    customer_ref: str = ""
    payment_method_ref: str = ""


@dataclass(frozen=True, slots=True)
class Notice:
    """A verified webhook: the event's identity, and the order it seems to be about."""

    event_id: str
    event_type: str
    livemode: bool
    order_id: str = ""
    provider_order_id: str = ""
    payment_id: str = ""
    # Identifies a replay under another event id, where the signature covers neither id nor time.
    body_sha256: str | None = None


class PaymentProvider(Protocol):
    """One payment provider. Every call blocks for a few seconds at most, and may be repeated."""

    name: str
    label: str  # as buyers read it

    @property
    def livemode(self) -> bool:
        """Whether real money moves."""
        ...

    def create_checkout(
        self, order: Order, *, return_url: str, cancel_url: str, save_method: bool = False
    ) -> Checkout:
        """Make the provider's side of an order, once however often it is called.

        `save_method`: the buyer agreed to be charged again later; a paid order's state then names
        the customer and the payment method, where the provider can save one.
        """
        ...

    def fetch(self, order: Order) -> OrderState:
        """Return the state of an order, with its refunds and disputes."""
        ...

    def verify(self, body: bytes, headers: Mapping[str, str]) -> Notice:
        """Read a webhook. Raises BadSignature; never anything else, whatever the bytes are."""
        ...

    def refund(self, order: Order, refund: Refund) -> RefundState:
        """Send money back, once however often it is called.

        Raises ProviderDeclined when it was not sent and never will be.
        """
        ...

    def charge_saved(self, order: Order, top_up: AutoTopUp) -> OrderState:
        """Charge a saved method for an order without the buyer, once however often it is called."""
        ...


def metadata(order: Order) -> dict[str, str]:
    """Return our ids, which are attached to the provider's objects and come back in states."""
    return {"order_id": str(order.pk), "user_id": str(order.user_id)}


def unknown_order(order: Order, *, livemode: bool) -> OrderState:
    """Return the state of an order that the provider has no record of: open and unpaid."""
    return OrderState(
        standing=Standing.OPEN,
        provider_order_id="",
        amount_minor=order.amount_minor,
        currency=order.currency,
        livemode=livemode,
        order_id=str(order.pk),
        user_id=str(order.user_id),
    )
