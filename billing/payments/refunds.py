"""Giving money back. The credits go first, so that they are not spent while the money travels.

Refunds of ours (staff, buyers) take the credits, ask the provider, and give the credits back when
it says no for good. Refunds made in the provider's dashboard are found by `follow`. What is taken
follows one target for the whole order, not one amount for each refund, so that duplicates and the
order of events make no difference.

Rows of Refund are written under their order's lock only.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from datetime import timedelta
from uuid import UUID, uuid5

from django.conf import settings
from django.db.models import Sum
from django.utils import timezone

from billing import credits
from billing.ledger import postings
from billing.models import Account, Dispute, LedgerEntry, LotMove, Order, Refund
from billing.payments import mail, providers
from billing.payments.providers.base import ProviderDeclined, ProviderError, RefundState
from chatproject.lib.db import after_commit, money_transaction

logger = logging.getLogger(__name__)


class RefundRefused(Exception):
    """A refund was not begun, and nothing was taken; `message` says why."""

    def __init__(self, message: str) -> None:
        self.message = message
        super().__init__(message)


def eligible(order: Order) -> str:
    """Why a buyer may not take a purchase back by themselves; empty when they may."""
    if not settings.REFUND_DAYS:
        return "Purchases are refunded by our staff only. Write to us."
    if order.status == Order.Status.REFUNDED:
        return "This purchase was refunded already."
    if order.status != Order.Status.PAID or order.paid_at is None:
        return "Only a paid purchase can be refunded."
    if order.refunds.exclude(status=Refund.Status.FAILED).exists():
        return "A refund of this purchase is under way."
    if order.disputes.exclude(status=Dispute.Status.WON).exists():
        return "Your bank is dealing with this payment already."
    if order.paid_at < timezone.now() - timedelta(days=settings.REFUND_DAYS):
        return f"Purchases can be refunded for {settings.REFUND_DAYS} days. Write to us."
    account = Account.objects.get(pk=order.account_id)
    if account.status == Account.Status.FROZEN or account.debt:
        return "Your account has to be looked at by our staff first. Write to us."
    unused = postings.refundable(order_id=order.pk)
    if unused * 100 < _total(order) * settings.REFUND_UNUSED_PERCENT:
        return (
            f"More than {100 - settings.REFUND_UNUSED_PERCENT} % of these credits are used or set"
            " aside. Write to us."
        )
    return ""


def refundable_minor(order: Order) -> int:
    """The most money that can be sent back for the order's unused credits, in minor units."""
    if not order.is_paid:
        return 0
    alive = _alive(order)
    unused = postings.refundable(order_id=order.pk)
    # The largest amount whose share of the credits is covered by what was taken and what is unused.
    covered = sum(row.credits + row.debt for row in alive) + unused
    most = ((covered + 1) * order.amount_minor - 1) // _total(order)
    refunded = sum(row.amount_minor for row in alive)
    return max(0, min(most, order.amount_minor) - refunded) if unused else 0


def request_refund(
    *,
    order_id: UUID,
    amount_minor: int | None,
    actor_id: int | None,
    reason: str,
    initiated_by: Refund.Initiator,
    nonce: str,
) -> Refund:
    """Send money back for unused credits of an order; no amount means all that they are worth.

    The same `nonce` again finds the first call's refund. The refund that comes back succeeded,
    failed, or is pending: then the provider is asked again by and by. Raises RefundRefused.
    """
    refund = money_transaction(
        _request,
        # Made of the nonce, so that the table's key makes it one.
        refund_id=uuid5(order_id, nonce),
        order_id=order_id,
        amount_minor=amount_minor,
        actor_id=actor_id,
        reason=reason,
        initiated_by=initiated_by,
    )
    return send(refund.pk)


def _request(
    *,
    refund_id: UUID,
    order_id: UUID,
    amount_minor: int | None,
    actor_id: int | None,
    reason: str,
    initiated_by: Refund.Initiator,
) -> Refund:
    order = _lock(order_id)
    found = Refund.objects.filter(pk=refund_id, order=order).first()
    if found is not None:
        return found
    if not order.is_paid:
        raise RefundRefused("Only a paid purchase can be refunded.")
    if initiated_by == Refund.Initiator.USER:
        problem = eligible(order)
        if problem:
            raise RefundRefused(problem)
    most = refundable_minor(order)
    amount = most if amount_minor is None else amount_minor
    if amount <= 0 or amount > most:
        raise RefundRefused(
            f"The unused credits of this purchase are worth {credits.show_money(most, order.currency)};"
            " no more than that can be refunded."
        )
    refund = Refund.objects.create(
        pk=refund_id,
        order=order,
        amount_minor=amount,
        initiated_by=initiated_by,
        actor_id=actor_id,
        reason=reason[:300],
    )
    _take(order, refund)
    if refund.debt:
        # A hold was faster. The transaction ends with this exception, so nothing was taken.
        raise RefundRefused(
            "Some of these credits were used at this very moment. Look at the amount and try again."
        )
    refund.save()
    return refund


def send(refund_id: UUID) -> Refund:
    """Ask the provider for a refund, and follow its answer. Harmless when it was asked before."""
    refund = Refund.objects.select_related("order").get(pk=refund_id)
    if refund.status not in Refund.OPEN or refund.provider_refund_id is not None:
        return refund
    order = refund.order
    try:
        state = providers.get(order.provider).refund(order, refund)
    except ProviderDeclined as error:
        logger.warning("%s declined %s: %s", order.provider, refund, error)
        return money_transaction(_fail, refund_id, str(error))
    except (ProviderError, LookupError) as error:
        logger.warning("what became of %s is unknown: %s", refund, error)
        return money_transaction(_wait, refund_id, str(error))
    return money_transaction(_store, refund_id, state)


def _fail(refund_id: UUID, error: str) -> Refund:
    order, refund = _lock_refund(refund_id)
    if refund.status in Refund.OPEN and refund.provider_refund_id is None:
        refund.error = error[:300]
        _move(order, refund, Refund.Status.FAILED)
        _add_up(order)
    return refund


def _wait(refund_id: UUID, error: str) -> Refund:
    _, refund = _lock_refund(refund_id)
    if refund.status in Refund.OPEN:
        refund.status = Refund.Status.PENDING
        refund.error = error[:300]
        refund.save()
    return refund


def _store(refund_id: UUID, state: RefundState) -> Refund:
    order, refund = _lock_refund(refund_id)
    if refund.status != Refund.Status.FAILED:
        refund.provider_refund_id = state.id
        _move(order, refund, state.status)
        _add_up(order)
    return refund


def _lock(order_id: UUID) -> Order:
    return Order.objects.select_for_update(no_key=True).get(pk=order_id)


def _lock_refund(refund_id: UUID) -> tuple[Order, Refund]:
    order_id = Refund.objects.values_list("order_id", flat=True).get(pk=refund_id)
    order = _lock(order_id)
    return order, Refund.objects.get(pk=refund_id)


# --- What the provider knows -------------------------------------------------------------------


def follow(order: Order, states: Iterable[RefundState]) -> None:
    """Bring an order's refunds to where the provider says they stand.

    Under the order's lock, inside `money_transaction`; the caller saves the order.
    """
    known = list(Refund.objects.filter(order=order).order_by("pk"))
    for state in states:
        refund = _find(known, state)
        if refund is None:
            refund = Refund(
                order=order,
                amount_minor=state.amount_minor,
                initiated_by=Refund.Initiator.PROVIDER,
                status=Refund.Status.REQUESTED,
                reason="Made at the payment provider",
            )
            refund.save(force_insert=True)
            known.append(refund)
            _tell_staff(order, refund)
        if refund.status == Refund.Status.FAILED:
            # That is final: another answer is an older one.
            continue
        refund.provider_refund_id = state.id
        _move(order, refund, state.status)
    _add_up(order, save=False)


def _find(known: list[Refund], state: RefundState) -> Refund | None:
    """Our row of a refund at the provider: by its id there, by ours, or as the one that waits."""
    for refund in known:
        if refund.provider_refund_id == state.id:
            return refund
    # One that failed without ever having an id has its credits back already: what is found at the
    # provider after all is another one.
    waiting = [row for row in known if row.provider_refund_id is None and row.status in Refund.OPEN]
    for refund in waiting:
        if state.reference and str(refund.pk) == state.reference:
            return refund
    for refund in waiting:
        # A provider that does not repeat our id: taking the credits twice would be worse.
        if not state.reference and refund.amount_minor == state.amount_minor:
            return refund
    return None


def _move(order: Order, refund: Refund, status: Refund.Status) -> None:
    """Change the status of a refund that has not failed: its credits are taken, or returned."""
    is_new = refund.status != status
    if status == Refund.Status.FAILED:
        _give_back(order, refund)
    elif not refund.credits + refund.debt:
        _take(order, refund)
    refund.status = status
    if status != Refund.Status.FAILED:
        refund.error = ""
    refund.save()
    if is_new and status == Refund.Status.SUCCEEDED:
        after_commit(mail.deliver_refunded, refund.pk)


def _take(order: Order, refund: Refund) -> None:
    """Take the credits that the order's refunds, this one among them, have not taken yet."""
    others = [row for row in _alive(order) if row.pk != refund.pk]
    money = sum(row.amount_minor for row in others) + refund.amount_minor
    due = share(order, money) - sum(row.credits + row.debt for row in others)
    refund.credits = refund.debt = 0
    if due > 0:
        taken = postings.refund(
            order_id=order.pk,
            credits=due,
            key=f"refund:{refund.pk}",
            refund=refund,
            actor_id=refund.actor_id,
            note=refund.reason,
        )
        refund.credits = taken.credits
        refund.debt = taken.debt


def _give_back(order: Order, refund: Refund) -> None:
    if refund.credits + refund.debt:
        postings.give_back(
            order_id=order.pk,
            credits=refund.credits,
            debt=refund.debt,
            key=f"refund:{refund.pk}:returned",
            refund=refund,
            note="The refund failed",
        )


def share(order: Order, money: int) -> int:
    """The credits that so much of the order's money stands for, in micro-credits.

    All of them for all of the money; what has expired unused is owed by nobody.
    """
    total = _total(order)
    part = total if money >= order.amount_minor else total * money // order.amount_minor
    expired = LotMove.objects.filter(
        lot__order=order, entry__kind=LedgerEntry.Kind.EXPIRE
    ).aggregate(sum=Sum("amount"))["sum"]
    return min(part, total + (expired or 0))


def _total(order: Order) -> int:
    return order.credits + order.bonus


def _alive(order: Order) -> list[Refund]:
    return list(Refund.objects.filter(order=order).exclude(status=Refund.Status.FAILED))


def _add_up(order: Order, *, save: bool = True) -> None:
    """The order's sum and status follow from its refunds."""
    refunded = sum(
        Refund.objects.filter(order=order, status=Refund.Status.SUCCEEDED).values_list(
            "amount_minor", flat=True
        )
    )
    if refunded > order.amount_minor:
        text = f"The provider refunded {refunded} of {order.amount_minor} for order {order.pk}."
        after_commit(mail.alert, "More was refunded than paid", text)
    order.amount_refunded_minor = min(refunded, order.amount_minor)
    if not refunded:
        order.status = Order.Status.PAID
    elif refunded < order.amount_minor:
        order.status = Order.Status.PARTIALLY_REFUNDED
    else:
        order.status = Order.Status.REFUNDED
    if save:
        order.save()


def _tell_staff(order: Order, refund: Refund) -> None:
    text = (
        f"{credits.show_money(refund.amount_minor, order.currency)} of order {order.pk} were refunded"
        f" at {order.provider}. The credits are taken back."
    )
    after_commit(mail.notify_staff, "A refund was made", text)
