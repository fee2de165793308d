"""Packages for sale, and orders: finding, locking and describing them."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from django.conf import settings
from django.db.models import Q
from django.utils.translation import gettext, gettext_lazy

from billing.credits import MICRO
from billing.models import CreditPackage, Order, PackagePrice, Refund

STATUS_WORDS = {
    Order.Status.CREATED: gettext_lazy("Not paid yet"),
    Order.Status.PENDING: gettext_lazy("Not paid yet"),
    Order.Status.PAID: gettext_lazy("Paid"),
    Order.Status.PARTIALLY_REFUNDED: gettext_lazy("Partly refunded"),
    Order.Status.REFUNDED: gettext_lazy("Refunded"),
    Order.Status.CANCELED: gettext_lazy("Canceled"),
    Order.Status.FAILED: gettext_lazy("Payment failed"),
    Order.Status.REVIEW: gettext_lazy("In review"),
}

UNPAID = (
    "If you have just paid, this page updates in a moment. Some payments take longer; your credits"
    " are added automatically, so you can leave this page."
)

SENTENCES = {
    Order.Status.CREATED: UNPAID,
    Order.Status.PENDING: UNPAID,
    Order.Status.PAID: gettext_lazy("The credits are in your account."),
    Order.Status.PARTIALLY_REFUNDED: gettext_lazy(
        "Part of the payment was refunded, and its credits were removed."
    ),
    Order.Status.REFUNDED: gettext_lazy("The payment was refunded, and the credits were removed."),
    Order.Status.CANCELED: gettext_lazy("Nothing was charged."),
    Order.Status.FAILED: gettext_lazy("No credits were added and nothing was charged."),
    Order.Status.REVIEW: gettext_lazy(
        "Something about this payment does not match, so our staff review it. Nothing is lost."
    ),
}

REFUND_WORDS = {
    Refund.Status.REQUESTED: gettext_lazy("on its way"),
    Refund.Status.PENDING: gettext_lazy("on its way"),
    Refund.Status.SUCCEEDED: gettext_lazy("sent back to you"),
    Refund.Status.FAILED: "failed; your credits were returned",
}


@dataclass(frozen=True, slots=True)
class Offer:
    """A package at a price."""

    package: CreditPackage
    currency: str
    amount_minor: int

    @property
    def per_thousand(self) -> int:
        """The price of 1,000 of its credits in minor units, to the nearest."""
        credits = self.package.credits + self.package.bonus
        return (2 * self.amount_minor * 1_000 * MICRO + credits) // (2 * credits)


@dataclass(frozen=True, slots=True)
class OrderLine:
    """An order with its status in words."""

    order: Order
    status_words: str


@dataclass(frozen=True, slots=True)
class RefundLine:
    """A refund with its status in words."""

    refund: Refund
    status_words: str


def offers() -> list[Offer]:
    """Return all offers, in every currency of the site, in the order of the packages."""
    found = (
        PackagePrice.objects.filter(package__active=True, currency__in=settings.CURRENCIES)
        .select_related("package__plan")
        .order_by("package__position", "package__credits", "package_id", "currency")
    )
    return [Offer(price.package, price.currency, price.amount_minor) for price in found]


def currencies(found: list[Offer]) -> list[str]:
    """Return the currencies of offers, in the site's order of preference."""
    offered = {offer.currency for offer in found}
    return [currency for currency in settings.CURRENCIES if currency in offered]


def orders(user_id: int, limit: int) -> list[OrderLine]:
    """Return a user's orders, the newest first."""
    found = Order.objects.filter(user=user_id).order_by("-created_at")[:limit]
    return [OrderLine(order, str(STATUS_WORDS[Order.Status(order.status)])) for order in found]


def order(user_id: int, order_id: UUID) -> Order:
    """Return a user's own order. Raises Order.DoesNotExist."""
    return Order.objects.select_related("user").get(pk=order_id, user=user_id)


def lock_order(order_id: UUID) -> Order:
    """Lock an order until the transaction ends. In the order of locks it precedes its account."""
    return Order.objects.select_for_update(no_key=True).get(pk=order_id)


def in_review() -> Q:
    """Return the condition of orders that staff must look at: in review, or paid with a problem."""
    return Q(status=Order.Status.REVIEW) | Q(status__in=Order.SETTLED) & ~Q(problem="")


def sentence(order: Order) -> str:
    """Return the meaning of an order's status for its buyer."""
    status = Order.Status(order.status)
    if status == Order.Status.FAILED and order.problem:
        return f"{gettext(order.problem).rstrip('.')}. {SENTENCES[status]}"
    return str(SENTENCES[status])


def refunds(order: Order) -> list[RefundLine]:
    """Return an order's refunds, the oldest first."""
    return [
        RefundLine(refund, str(REFUND_WORDS[Refund.Status(refund.status)]))
        for refund in order.refunds.order_by("pk")
    ]
