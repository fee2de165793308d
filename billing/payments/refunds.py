"""Refunds. The credits are deducted first, so that they are not spent while the money travels.

Our own refunds (by staff or buyers) deduct the credits, ask the provider, and return the credits
when it refuses for good. Refunds made in the provider's dashboard are found by `apply_state`. How
many credits are deducted is decided for the whole order, by billing.payments.reclaim.

Rows of Refund are written under their order's lock only.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from datetime import timedelta
from uuid import UUID, uuid5

from django.conf import settings
from django.utils import timezone
from django.utils.translation import gettext as _

from billing import credits
from billing.ledger import postings, staff_actions
from billing.models import Account, Dispute, Order, Refund
from billing.payments import invoices, mail, providers, reclaim
from billing.payments.packages import lock_order
from billing.payments.providers.base import ProviderDeclined, ProviderError, RefundState
from chatproject.lib.db import after_commit, money_transaction
from chatproject.lib.log_events import log_event

logger = logging.getLogger(__name__)


class RefundRefused(Exception):
    """A refund was not begun, and no credits were deducted; `message` gives the reason."""

    def __init__(self, message: str) -> None:
        self.message = message
        super().__init__(message)


def eligible(order: Order) -> str:
    """Return the reason why a buyer may not request a refund of an order; empty when they may."""
    if not settings.REFUND_DAYS:
        return _("Refunds are made by our staff only. Contact us.")
    if order.status == Order.Status.REFUNDED:
        return _("This purchase has already been refunded.")
    if order.status != Order.Status.PAID or order.paid_at is None:
        return _("Only a paid purchase can be refunded.")
    if order.refunds.exclude(status=Refund.Status.FAILED).exists():
        return _("A refund of this purchase is in progress.")
    if order.disputes.exclude(status=Dispute.Status.WON).exists():
        return _("This payment is disputed at your bank.")
    if order.plan_id is not None:
        # A buyer could spend the plan's credits, or keep the plan with a refund of all but one of the bought ones.
        return _("This purchase came with a plan. Contact us.")
    if order.paid_at < timezone.now() - timedelta(days=settings.REFUND_DAYS):
        return _("Purchases can be refunded for %(refund_days)s days. Contact us.") % {
            "refund_days": settings.REFUND_DAYS
        }
    account = Account.objects.get(pk=order.account_id)
    if account.status == Account.Status.FROZEN or account.debt:
        return _("Our staff must review your account first. Contact us.")
    unused = postings.refundable(order_id=order.pk)
    if unused * 100 < (order.credits + order.bonus) * settings.REFUND_UNUSED_PERCENT:
        return _(
            "More than %(refund_unused_percent)s %% of these credits are used or reserved. Contact us."
        ) % {"refund_unused_percent": 100 - settings.REFUND_UNUSED_PERCENT}
    return ""


def refundable_minor(order: Order) -> int:
    """Return the largest amount that can be refunded for the order's unused credits, in minor units."""
    if not order.is_paid:
        return 0
    claims = reclaim.standing(order)
    unused = postings.refundable(order_id=order.pk)
    # The largest amount whose share of the credits is covered by deducted and unused ones.
    covered = sum(claim.credits + claim.debt for claim in claims) + unused
    max_amount = ((covered + 1) * order.amount_minor - 1) // (order.credits + order.bonus)
    rest = min(max_amount, order.amount_minor) - sum(claim.amount_minor for claim in claims)
    if max_amount < order.amount_minor:
        rest -= rest % credits.step_of_money(order.currency)
    return max(0, rest) if unused else 0


def request_refund(
    *,
    order_id: UUID,
    amount_minor: int | None,
    actor_id: int | None,
    reason: str,
    initiated_by: Refund.Initiator,
    nonce: str,
    ip: str | None = None,
) -> Refund:
    """Refund unused credits of an order; no amount means all that they are worth.

    A call with the same `nonce` finds the first call's refund. One of staff is audited with their address
    `ip`. The returned refund succeeded, failed,
    or is pending; the poller asks the provider about a pending one. Raises RefundRefused.
    """
    refund_id = uuid5(order_id, nonce)  # so that the primary key makes it one refund
    refund = money_transaction(
        _request, refund_id, order_id, amount_minor, actor_id, reason, initiated_by, ip
    )
    return send(refund.pk)


def _request(
    refund_id: UUID,
    order_id: UUID,
    amount_minor: int | None,
    actor_id: int | None,
    reason: str,
    initiated_by: Refund.Initiator,
    ip: str | None,
) -> Refund:
    order = lock_order(order_id)
    found = Refund.objects.filter(pk=refund_id, order=order).first()
    if found is not None:
        return found
    if not order.is_paid:
        raise RefundRefused(_("Only a paid purchase can be refunded."))
    if initiated_by == Refund.Initiator.USER:
        problem = eligible(order)
        if problem:
            raise RefundRefused(problem)
    max_amount = refundable_minor(order)
    amount = max_amount if amount_minor is None else amount_minor
    if not 0 < amount <= max_amount:
        raise RefundRefused(
            "The unused credits of this purchase are worth"
            f" {credits.show_money(max_amount, order.currency)}; no more than that can be refunded."
        )
    if amount != max_amount and amount % credits.step_of_money(order.currency):
        raise RefundRefused(
            _("The last digit of an amount in %(currency)s must be 0.")
            % {"currency": order.currency}
        )
    invoices.issue(order)  # for orders of earlier releases
    refund = Refund.objects.create(
        pk=refund_id,
        order=order,
        amount_minor=amount,
        initiated_by=initiated_by,
        actor_id=actor_id,
        reason=reason[:300],
    )
    reclaim.to_target(order)
    refund.refresh_from_db()
    if refund.debt:
        # A hold was faster. This exception rolls the transaction back, so nothing is deducted.
        raise RefundRefused(
            _("Some of these credits have just been used. Check the amount and try again.")
        )
    order.save()
    if initiated_by == Refund.Initiator.STAFF and actor_id is not None:
        staff_actions.record(
            actor_id=actor_id,
            action="refund",
            target=f"{order} of {order.user}",
            before={"refunded": order.amount_refunded_minor},
            after={"refund": str(refund.pk), "amount": refund.amount_minor},
            reason=reason,
            ip=ip,
            row=order,
            change=credits.show_money(amount, order.currency),
        )
    return refund


def send(refund_id: UUID) -> Refund:
    """Request a refund from the provider, and store its answer. Safe to repeat."""
    refund = Refund.objects.select_related("order").get(pk=refund_id)
    if refund.status not in Refund.OPEN or refund.provider_refund_id is not None:
        return refund
    answer: RefundState | ProviderError
    try:
        answer = providers.get(refund.order.provider).refund(refund.order, refund)
    except ProviderError as error:
        logger.warning("%s did not make %s: %s", refund.order.provider, refund, error)
        answer = error
    return money_transaction(_store, refund_id, answer)


def _store(refund_id: UUID, answer: RefundState | ProviderError) -> Refund:
    """Store the provider's answer. A refusal returns the credits; an unknown outcome is pending."""
    order = lock_order(Refund.objects.values_list("order_id", flat=True).get(pk=refund_id))
    refund = Refund.objects.get(pk=refund_id)
    if isinstance(answer, RefundState):
        if refund.status in Refund.OPEN:  # otherwise a sync was faster, with a later state
            refund.provider_refund_id = answer.id
            _move(order, refund, answer.status)
            add_up(order)
    elif refund.status in Refund.OPEN:
        refund.error = str(answer)[:300]
        if not isinstance(answer, ProviderDeclined):
            refund.status = Refund.Status.PENDING
            refund.save()
        elif refund.provider_refund_id is None:
            _move(order, refund, Refund.Status.FAILED)
            add_up(order)
    invoices.issue(order)
    refund.refresh_from_db()
    return refund


# --- Applying the provider's state -------------------------------------------------------------


def apply_state(order: Order, states: Iterable[RefundState]) -> None:
    """Bring an order's refunds to their states at the provider.

    Under the order's lock, inside `money_transaction`; the caller calls `add_up`.
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
                reason=_("Made at the payment provider"),
            )
            refund.save(force_insert=True)
            known.append(refund)
            text = (
                f"{credits.show_money(refund.amount_minor, order.currency)} of order {order.pk} were"
                f" refunded at {order.provider}. The credits are taken back."
            )
            after_commit(mail.notify_staff, _("A refund was made"), text)
        if refund.status == Refund.Status.FAILED:
            # A failure is final: another state is outdated.
            continue
        refund.provider_refund_id = state.id
        _move(order, refund, state.status)


def _find(known: list[Refund], state: RefundState) -> Refund | None:
    """Return our row of a refund at the provider: by its id there, by ours, or by its amount."""
    for refund in known:
        if refund.provider_refund_id == state.id:
            return refund
    # A refund that failed without ever having an id has had its credits returned: a refund that the
    # provider reports after all counts as another one.
    waiting = [row for row in known if row.provider_refund_id is None and row.status in Refund.OPEN]
    for refund in waiting:
        if state.reference and str(refund.pk) == state.reference:
            return refund
    for refund in waiting:
        # A provider that does not repeat our id. Deducting the credits twice would be worse.
        if not state.reference and refund.amount_minor == state.amount_minor:
            return refund
    return None


def _move(order: Order, refund: Refund, status: Refund.Status) -> None:
    """Change the status of a refund that has not failed; a failure returns its credits."""
    is_new = refund.status != status
    if status == Refund.Status.FAILED:
        reclaim.undo(order, refund, _("The refund failed"))
    else:
        refund.error = ""
    refund.status = status
    refund.save()
    if is_new:
        after_commit(
            log_event,
            "refund",
            status=str(status),
            refund_id=refund.pk,
            order_id=order.pk,
            user_id=order.user_id,
            provider=order.provider,
            amount_minor=refund.amount_minor,
            currency=order.currency,
            initiated_by=str(refund.initiated_by),
        )
    if is_new and status == Refund.Status.SUCCEEDED:
        after_commit(mail.send_refunded, refund.pk)


def add_up(order: Order) -> None:
    """Bring credits, refunded sum and status of an order to its refunds and disputes; save it."""
    reclaim.to_target(order)
    refunded = sum(
        Refund.objects.filter(order=order, status=Refund.Status.SUCCEEDED).values_list(
            "amount_minor", flat=True
        )
    )
    order.amount_refunded_minor = min(refunded, order.amount_minor)
    if not refunded:
        order.status = Order.Status.PAID
    elif refunded < order.amount_minor:
        order.status = Order.Status.PARTIALLY_REFUNDED
    else:
        order.status = Order.Status.REFUNDED
    order.save()
