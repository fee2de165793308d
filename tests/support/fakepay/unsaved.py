"""Orders, refunds and top-ups that are in no database: enough for a payment provider's adapter."""

from __future__ import annotations

from django.utils import timezone

from billing.models import AutoTopUp, Order, Refund

CREDITS = 1_000_000_000
USER = 7


def order(provider: str, **fields) -> Order:
    fields.setdefault("amount_minor", 500)
    fields.setdefault("currency", "INR" if provider == "razorpay" else "USD")
    return Order(
        user_id=USER,
        package_name="1,000 credits",
        credits=CREDITS,
        provider=provider,
        created_at=timezone.now(),
        **fields,
    )


def refund(of: Order, amount_minor: int) -> Refund:
    return Refund(order=of, amount_minor=amount_minor, initiated_by=Refund.Initiator.STAFF)


def top_up(**fields) -> AutoTopUp:
    return AutoTopUp(user_id=USER, enabled=True, currency="USD", provider="stripe", **fields)
