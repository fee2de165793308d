"""What billing asks of a payment provider, in words of its own.

A provider is asked for facts and never decides anything: `fetch` tells how things stand there, and
billing.payments.checkout draws the conclusions. No database transaction is open while a provider is called.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from billing.models import AutoTopUp, Order, Refund


class ProviderError(Exception):
    """The provider could not be asked, or gave no usable answer: what it did is unknown. Ask again."""


class ProviderDeclined(ProviderError):
    """The provider said no for good; `code` is its own word for why."""

    def __init__(self, message: str, *, code: str = "") -> None:
        self.code = code
        super().__init__(message)


class BadSignature(Exception):
    """A webhook is not from the provider, or not whole, or too old, or of the other mode."""


class Standing(enum.Enum):
    """How a payment stands with the provider."""

    OPEN = "open"
    PAID = "paid"
    FAILED = "failed"
    CANCELED = "canceled"


@dataclass(frozen=True, slots=True)
class Checkout:
    """Where to send the buyer: a link, or (with `fields`) a form to post there."""

    provider_order_id: str
    url: str
    fields: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RefundState:
    """A refund as the provider has it. `reference` is our refund's id, where it knows it."""

    id: str
    amount_minor: int
    status: Refund.Status
    reference: str = ""


@dataclass(frozen=True, slots=True)
class DisputeState:
    """A disputed charge. `funds_withdrawn`: the money is gone (an inquiry alone takes none)."""

    id: str
    amount_minor: int
    status: str  # a value of Dispute.Status
    funds_withdrawn: bool


@dataclass(frozen=True, slots=True)
class OrderState:
    """All that a provider knows of one of our orders."""

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
    problem: str = ""  # in words for the buyer, when it failed
    refunds: tuple[RefundState, ...] = ()
    disputes: tuple[DisputeState, ...] = ()
    customer_ref: str = ""
    payment_method_ref: str = ""


@dataclass(frozen=True, slots=True)
class Notice:
    """A verified webhook: which event it is, and which order it seems to be about."""

    event_id: str
    event_type: str
    livemode: bool
    order_id: str = ""
    provider_order_id: str = ""
    payment_id: str = ""
    # Where the signature covers neither id nor time: what a replay under another id has in common.
    body_sha256: str | None = None


class Provider(Protocol):
    """One payment provider. All calls block for some seconds at most, and may be repeated."""

    name: str
    label: str  # as buyers read it

    @property
    def livemode(self) -> bool:
        """Whether money moves for real."""
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
        """How an order stands, with its refunds and disputes."""
        ...

    def verify(self, body: bytes, headers: Mapping[str, str]) -> Notice:
        """Read a webhook. Raises BadSignature; never anything else, whatever the bytes are."""
        ...

    def refund(self, order: Order, refund: Refund) -> RefundState:
        """Send money back, once however often it is called. ProviderDeclined: it was not and will not be."""
        ...

    def charge_saved(self, order: Order, top_up: AutoTopUp) -> OrderState:
        """Charge a saved method for an order without the buyer, once however often it is called."""
        ...
