"""What is for sale, and orders in words."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from django.conf import settings

from billing.credits import MICRO
from billing.models import CreditPackage, Order, PackagePrice, Refund

STATUS_WORDS = {
    Order.Status.CREATED: "Not paid yet",
    Order.Status.PENDING: "Not paid yet",
    Order.Status.PAID: "Paid",
    Order.Status.PARTIALLY_REFUNDED: "Partly refunded",
    Order.Status.REFUNDED: "Refunded",
    Order.Status.CANCELED: "Canceled",
    Order.Status.FAILED: "Payment failed",
    Order.Status.REVIEW: "Being looked at",
}

UNPAID = (
    "If you have just paid, this page shows it in a moment. Some payments take longer; the credits"
    " come by themselves, and you may leave this page."
)

SENTENCES = {
    Order.Status.CREATED: UNPAID,
    Order.Status.PENDING: UNPAID,
    Order.Status.PAID: "The credits are on your account.",
    Order.Status.PARTIALLY_REFUNDED: "A part of the money went back to you, and its credits were taken.",
    Order.Status.REFUNDED: "The money went back to you, and the credits were taken.",
    Order.Status.CANCELED: "Nothing was charged.",
    Order.Status.FAILED: "No credits were given and nothing was charged.",
    Order.Status.REVIEW: "Something about this payment does not add up, so a person looks at it. Nothing is lost.",
}

REFUND_WORDS = {
    Refund.Status.REQUESTED: "on its way",
    Refund.Status.PENDING: "on its way",
    Refund.Status.SUCCEEDED: "sent back to you",
    Refund.Status.FAILED: "did not go through, the credits are yours again",
}


@dataclass(frozen=True, slots=True)
class Offer:
    """A package at a price; `per_thousand` is what 1,000 of its credits cost, in minor units."""

    package: CreditPackage
    currency: str
    amount_minor: int
    per_thousand: int


@dataclass(frozen=True, slots=True)
class OrderLine:
    """An order, and its status in words."""

    order: Order
    status_words: str


@dataclass(frozen=True, slots=True)
class RefundLine:
    """A refund, and its status in words."""

    refund: Refund
    status_words: str


def offers() -> list[Offer]:
    """Everything that is for sale, in all currencies of the site, in the order of the packages."""
    found = (
        PackagePrice.objects.filter(package__active=True, currency__in=settings.CURRENCIES)
        .select_related("package")
        .order_by("package__position", "package__credits", "package_id", "currency")
    )
    return [
        Offer(price.package, price.currency, price.amount_minor, _per_thousand(price))
        for price in found
    ]


def _per_thousand(price: PackagePrice) -> int:
    credits = price.package.credits + price.package.bonus
    return (2 * price.amount_minor * 1_000 * MICRO + credits) // (2 * credits)  # to the nearest


def currencies(found: list[Offer]) -> list[str]:
    """The currencies of offers, the site's first choice first."""
    offered = {offer.currency for offer in found}
    return [currency for currency in settings.CURRENCIES if currency in offered]


def orders(user_id: int, most: int) -> list[OrderLine]:
    """A user's last orders."""
    found = Order.objects.filter(user=user_id).order_by("-created_at")[:most]
    return [OrderLine(order, STATUS_WORDS[Order.Status(order.status)]) for order in found]


def order(user_id: int, order_id: UUID) -> Order:
    """A user's own order. Raises Order.DoesNotExist."""
    return Order.objects.select_related("user").get(pk=order_id, user=user_id)


def sentence(order: Order) -> str:
    """What an order's status means for its buyer."""
    status = Order.Status(order.status)
    if status == Order.Status.FAILED and order.problem:
        return f"{order.problem.rstrip('.')}. No credits were given and nothing was charged."
    return SENTENCES[status]


def refunds(order: Order) -> list[RefundLine]:
    """An order's refunds, the oldest first."""
    return [
        RefundLine(refund, REFUND_WORDS[Refund.Status(refund.status)])
        for refund in order.refunds.order_by("pk")
    ]
