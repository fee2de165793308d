"""Disputes: charges that a buyer's bank reverses (chargebacks).

Once the money is withdrawn the credits are reclaimed (billing.payments.reclaim), and the account is
frozen. Winning the dispute, or getting the money back, undoes all three. A lost dispute leaves them
as they are until staff decide.
"""

from __future__ import annotations

from collections.abc import Iterable

from billing import credits
from billing.ledger import postings
from billing.models import Account, Dispute, Order
from billing.payments import mail, reclaim
from billing.payments.providers.base import DisputeState
from chatproject.lib.db import after_commit
from chatproject.lib.log_events import log_event


def apply_state(order: Order, states: Iterable[DisputeState]) -> None:
    """Bring an order's disputes to their states at the provider.

    Under the order's lock, inside `money_transaction`; the caller calls `refunds.add_up`.
    """
    for state in states:
        dispute, is_new = Dispute.objects.get_or_create(
            provider=order.provider,
            provider_dispute_id=state.id,
            order=order,
            defaults={"amount_minor": state.amount_minor},
        )
        if is_new:
            _notify_staff(
                order, "A payment is disputed", "Answer the dispute there if it is wrong."
            )
        if dispute.status == Dispute.Status.WON or (
            dispute.status == Dispute.Status.LOST and state.status == Dispute.Status.OPEN
        ):
            # This answer is outdated.
            continue
        was_standing = dispute.funds_withdrawn and not dispute.returned
        is_standing = state.status != Dispute.Status.WON and (
            state.funds_withdrawn or state.status == Dispute.Status.LOST
        )
        dispute.amount_minor = state.amount_minor
        if is_standing and not was_standing:
            _freeze(order, dispute)
        elif was_standing and not is_standing:
            reclaim.undo(order, dispute, "The payment is no longer disputed")
            dispute.returned = True
            if dispute.froze and not _others_freeze(order, dispute):
                postings.set_status(account_id=order.account_id, status=Account.Status.ACTIVE)
            dispute.froze = False
        if state.status == Dispute.Status.WON:
            _notify_staff(order, "A dispute was won", "The credits were returned to the buyer.")
        elif state.status == Dispute.Status.LOST and dispute.status != Dispute.Status.LOST:
            _notify_staff(order, "A dispute was lost", "The account stays frozen until you decide.")
        if is_new or dispute.status != state.status:
            after_commit(
                log_event,
                "dispute",
                status=str(state.status),
                order_id=order.pk,
                user_id=order.user_id,
                provider=order.provider,
                amount_minor=state.amount_minor,
                currency=order.currency,
            )
        dispute.status = state.status
        dispute.save()


def _freeze(order: Order, dispute: Dispute) -> None:
    """Freeze the account. The credits are taken for all of the order's claims together."""
    dispute.funds_withdrawn = True
    if dispute.returned:
        # The credits of the first withdrawal were given back.
        dispute.postings = max(dispute.postings, 1)
        dispute.returned, dispute.credits, dispute.debt = False, 0, 0
    account = Account.objects.get(pk=order.account_id)
    # An account that staff had frozen before stays frozen when this dispute is won.
    dispute.froze = account.status == Account.Status.ACTIVE or _others_freeze(order, dispute)
    postings.set_status(account_id=order.account_id, status=Account.Status.FROZEN)


def _others_freeze(order: Order, dispute: Dispute) -> bool:
    """Return whether another dispute keeps the account frozen."""
    others = Dispute.objects.filter(order__account=order.account_id, froze=True)
    return others.exclude(pk=dispute.pk).exists()


def _notify_staff(order: Order, subject: str, what: str) -> None:
    text = (
        f"Order {order.pk} over {credits.show_money(order.amount_minor, order.currency)},"
        f" paid with {order.provider}. {what}"
    )
    after_commit(mail.notify_staff, subject, text)
