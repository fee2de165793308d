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

from django.utils.functional import Promise

from billing.models import AutoTopUp, Order, Refund

MAX_ID = 255  # characters
MAX_INTEGER = 2**63 - 1


class ProviderError(Exception):
    """The provider was unreachable or sent no usable answer. The outcome is unknown: ask again."""


class UnreadableAnswer(ProviderError):
    """The provider's answer lacks a value or has an odd one, so a person must look at it."""


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


def is_usable(value: object, limit: int = MAX_ID) -> bool:
    """Return whether a value is a text of printable characters that fits into a column."""
    return isinstance(value, str) and 0 < len(value) <= limit and value.isprintable()


def require(is_met: bool, what: str) -> None:
    """Raise ValueError, which adapters turn into UnreadableAnswer, unless a condition is met."""
    if not is_met:
        raise ValueError(f"odd {what}")


def _is_amount(value: object, least: int = 0) -> bool:
    return type(value) is int and least <= value <= MAX_INTEGER


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

    def __post_init__(self) -> None:
        require(is_usable(self.id), "id of a refund")
        require(_is_amount(self.amount_minor, 1), "amount of a refund")


@dataclass(frozen=True, slots=True)
class DisputeState:
    """A disputed charge. `funds_withdrawn`: the bank took the money (an inquiry alone takes none)."""

    id: str
    amount_minor: int
    status: str  # a value of Dispute.Status
    funds_withdrawn: bool

    def __post_init__(self) -> None:
        require(is_usable(self.id), "id of a dispute")
        require(_is_amount(self.amount_minor), "amount of a dispute")


@dataclass(frozen=True, slots=True)
class Buyer:
    """The name, the address in lines, and the tax number of a buyer; empty ones are not known."""

    name: str
    address: str
    tax_id: str = ""


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
    payment_order_id: str | None = None  # ours, as the payment itself names it; None if it does not
    other_payments: tuple[str, ...] = ()  # further payments of the order that the provider keeps
    tax_minor: int = 0
    tax_rate: str = ""  # as it is printed: `19 %`
    buyer: Buyer | None = None  # as given to the provider
    receipt_url: str = ""
    problem: str = ""  # a sentence for the buyer, when it failed
    problem_code: str = ""  # the provider's own word for the reason
    refunds: tuple[RefundState, ...] = ()
    disputes: tuple[DisputeState, ...] = ()
    customer_ref: str = ""
    payment_method_ref: str = ""

    def __post_init__(self) -> None:
        require(not self.provider_order_id or is_usable(self.provider_order_id), "id of an order")
        require(self.payment_id is None or is_usable(self.payment_id), "id of a payment")
        require(all(map(is_usable, self.other_payments)), "id of a payment")
        require(_is_amount(self.amount_minor), "amount")
        require(_is_amount(self.tax_minor), "tax")
        require(is_usable(self.currency, 3) and len(self.currency) == 3, "currency")
        require(type(self.livemode) is bool, "mode")


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
    label: str | Promise  # as buyers read it

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

    def forget_saved(self, top_up: AutoTopUp) -> None:
        """Remove a saved method, so that it cannot be charged again.

        Raises ProviderDeclined when the provider has no such method (any longer).
        """
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
