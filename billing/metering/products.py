"""The money of work with a fixed price: held when it is bought, and charged once for what was delivered of it.

Its providers' calls are recorded apart, as absorbed: the buyer pays the price alone. A call inside the caller's
money transaction, as in billing.metering.settlement.
"""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID

from django.conf import settings

from billing.ledger import postings
from billing.metering import pricing, settlement, usage
from billing.metering.pricing import Tokens
from billing.models import Hold, UsageRecord
from billing.models.usage import Purpose


def share(price: int, done: int, total: int) -> int:
    """Return the part of a price for `done` of `total` parts, rounded down to whole micro-credits."""
    return price * done // total if total else 0


def is_free(price: int, *, is_staff: bool) -> bool:
    """Return whether a user pays nothing: without billing or a price, and by the rule of runs for staff."""
    return not settings.BILLING or not price or settlement.is_free(is_staff=is_staff)


def hold(
    *, account_id: int, user_id: int, id: UUID, kind: str, model: str, amount: int, time: timedelta
) -> None:
    """Hold the price under the id of the work; the last call before the COMMIT.

    Raises LimitReached, AccountFrozen, AccountInDebt and InsufficientCredits.
    """
    quoted = settlement.Quote(max_tokens=0, amount=amount, account_id=account_id, is_limited=True)
    settlement.hold(
        quoted,
        user_id=user_id,
        run_id=id,
        model=model,
        conversation=None,
        count_unheld=None,
        key=f"{kind}:{id}",
        time=time,
    )


def settle(
    *, user_id: int, id: UUID, model: str, name: str, cost: int, purpose: Purpose, by: Hold.Resolver
) -> int:
    """Resolve the hold of work that has ended; return the micro-credits that were charged.

    Nothing is charged, and nothing recorded, for a hold that was resolved before.
    """
    settled = postings.settle(hold_id=id, cost=cost, by=by)
    if not settled.is_new:
        return settled.charged
    if settled.charged or settled.shortfall:
        usage.record(
            run_id=id,
            attempt=1,
            purpose=purpose,
            user_id=user_id,
            hold_id=id,
            model=model,
            assistant=name,
            tokens=Tokens(input=0),
            source=UsageRecord.Source.COUNTED,
            cost=cost,
            charged=settled.charged,
            shortfall=settled.shortfall,
            absorbed=0,
            finish=UsageRecord.Finish.COMPLETE,
        )
    return settled.charged


def absorb(
    *,
    user_id: int,
    id: UUID,
    step: int,
    attempt: int,
    model: str,
    name: str,
    tokens: Tokens,
    source: UsageRecord.Source,
    finish: UsageRecord.Finish,
    purpose: Purpose,
) -> int:
    """Record a provider call for the work at our expense; return its cost in micro-credits."""
    price = pricing.in_force(model)
    cost = pricing.cost(price, tokens) if price else 0
    usage.record(
        run_id=id,
        attempt=attempt,
        step=step,
        purpose=purpose,
        user_id=user_id,
        price_id=price.pk if price else None,
        model=model,
        assistant=name,
        tokens=tokens,
        source=source,
        cost=cost,
        charged=0,
        shortfall=0,
        absorbed=cost,
        finish=finish,
    )
    return cost
