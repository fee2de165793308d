"""Credits of an order that are reclaimed because its money went back to the buyer.

There is one target for the whole order, computed from the refunds and disputes that stand now:
refunds that have not failed, and disputes whose money the bank holds. `to_target` posts the
difference between the target and the credits that are reclaimed already, so that neither duplicates
nor the order of events nor the moments of the syncs make a difference. The whole price is worth
all credits of the order: if more money goes back, no further credits are reclaimed.

A plan that came with the order loses the order's days once all of the money is back, and has them again if a refund
fails or a dispute is won (`plans.take_bought`, `plans.return_bought`).

Each refund and dispute has its own part of the target in `credits` and `debt`. All functions are
called inside `money_transaction`, under the order's lock.
"""

from __future__ import annotations

from django.db.models import Sum
from django.utils import timezone

from billing.credits import show_money
from billing.ledger import plans, postings
from billing.models import Dispute, LedgerEntry, LotMove, Order, Refund
from billing.payments import mail
from chatproject.lib.db import after_commit

Claim = Refund | Dispute  # money that went back


def to_target(order: Order) -> None:
    """Post the difference to the target, and count the money that left twice; the caller saves."""
    claims = standing(order)
    parts = []
    money = 0
    for claim in claims:
        before = share(order, money)
        money += claim.amount_minor
        parts.append((claim, share(order, money) - before))
    plan = plans.take_bought if money >= order.amount_minor else plans.return_bought
    plan(order, timezone.now())
    for claim, part in parts:
        surplus = claim.credits + claim.debt - part
        if surplus > 0:
            _give_back(order, claim, surplus)
    room = _unexpired(order) - sum(claim.credits + claim.debt for claim in claims)
    for claim, part in parts:
        missing = min(part - claim.credits - claim.debt, room)
        if missing > 0:
            _take(order, claim, missing)
            room -= missing
    _count_loss(order, max(0, money - order.amount_minor))


def standing(order: Order) -> list[Claim]:
    """Return the refunds and disputes of an order that stand, the oldest first."""
    claims: list[Claim] = [
        *Refund.objects.filter(order=order).exclude(status=Refund.Status.FAILED),
        *Dispute.objects.filter(order=order, funds_withdrawn=True, returned=False),
    ]
    return sorted(claims, key=lambda claim: (claim.created_at, str(claim.pk)))


def share(order: Order, money: int) -> int:
    """Return the credits that an amount of the order's money stands for, in micro-credits."""
    total = order.credits + order.bonus
    return total if money >= order.amount_minor else total * money // order.amount_minor


def _unexpired(order: Order) -> int:
    """Return the order's credits less the ones that expired unused, which are not reclaimed."""
    expired = LotMove.objects.filter(
        lot__order=order, entry__kind=LedgerEntry.Kind.EXPIRE
    ).aggregate(sum=Sum("amount"))["sum"]
    return order.credits + order.bonus + (expired or 0)


def undo(order: Order, claim: Claim, note: str) -> None:
    """Give back all credits of a refund that failed or of a dispute whose money returned.

    `credits` and `debt` stay as a record. The caller changes the status, once, and saves the claim.
    """
    if claim.credits + claim.debt:
        _post_back(order, claim, claim.credits, claim.debt, note)


def _give_back(order: Order, claim: Claim, surplus: int) -> None:
    """Give back a part of a standing claim's credits: its debt is cancelled first."""
    debt = min(claim.debt, surplus)
    credits = surplus - debt
    _post_back(order, claim, credits, debt, "Less of the money went back")
    claim.credits -= credits
    claim.debt -= debt
    claim.save()


def _post_back(order: Order, claim: Claim, credits: int, debt: int, note: str) -> None:
    postings.give_back(
        order_id=order.pk,
        credits=credits,
        debt=debt,
        key=_next_key(claim),
        refund=claim if isinstance(claim, Refund) else None,
        dispute=claim if isinstance(claim, Dispute) else None,
        note=note,
    )


def _take(order: Order, claim: Claim, credits: int) -> None:
    taken = postings.refund(
        order_id=order.pk,
        credits=credits,
        key=_next_key(claim),
        refund=claim if isinstance(claim, Refund) else None,
        dispute=claim if isinstance(claim, Dispute) else None,
        actor_id=claim.actor_id if isinstance(claim, Refund) else None,
        note=claim.reason if isinstance(claim, Refund) else "The payment is disputed",
    )
    claim.credits += taken.credits
    claim.debt += taken.debt
    claim.save()


def _next_key(claim: Claim) -> str:
    """Return the key of a claim's next posting; the order's lock makes the numbers consecutive.

    The first posting of a claim was not counted before this release.
    """
    kind = "refund" if isinstance(claim, Refund) else "dispute"
    if not claim.postings and claim.credits + claim.debt:
        claim.postings = 1
    claim.postings += 1
    return f"{kind}:{claim.pk}" + (f":{claim.postings}" if claim.postings > 1 else "")


def _count_loss(order: Order, lost: int) -> None:
    """Store the money that left beyond the price, and alert staff when it grows."""
    if lost > order.lost_minor:
        text = (
            f"{show_money(order.amount_minor + lost, order.currency)} went back for order"
            f" {order.pk}, which was paid with {show_money(order.amount_minor, order.currency)}:"
            f" by refunds, or by a refund and a dispute. The credits were reclaimed once. Answer the"
            f" dispute with the proof of the refund, or contact {order.provider}."
        )
        after_commit(mail.alert, "More money went back than was paid", text)
    order.lost_minor = lost
