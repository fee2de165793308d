"""New prices by staff, each with its audit record."""

from __future__ import annotations

from billing.ledger import staff_actions
from billing.models import ModelPrice

FIGURES = ("in_per_m", "cached_in_per_m", "out_per_m", "reasoning_per_m", "request_fee")


def publish(price: ModelPrice, *, actor_id: int, ip: str | None) -> None:
    """Store a new price and its audit record, in the caller's transaction if it has one."""
    price.created_by_id = actor_id
    price.save(force_insert=True)
    staff_actions.record(
        actor_id=actor_id,
        action="set price",
        target=str(price),
        after={field: getattr(price, field) for field in (*FIGURES, "tiers")},
        reason=price.source,
        ip=ip,
    )
