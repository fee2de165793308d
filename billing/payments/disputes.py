"""Disputes: charges that a buyer's bank reverses (chargebacks).

Once the money is withdrawn the credits are deducted, spent ones become debt, and the account is
frozen. Winning the dispute, or getting the money back, undoes all three. A lost dispute leaves them
as they are until staff decide.
"""

from __future__ import annotations

from collections.abc import Iterable

from billing import credits
from billing.ledger import postings
from billing.models import Account, Dispute, Order
from billing.payments import mail, refunds
from billing.payments.providers.base import DisputeState
from chatproject.lib.db import after_commit


def apply_state(order: Order, states: Iterable[DisputeState]) -> None:
    """Bring an order's disputes to their states at the provider.

    Under the order's lock, inside `money_transaction`.
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
        is_decided = dispute.status == Dispute.Status.LOST and state.status == Dispute.Status.OPEN
        if is_decided or dispute.status == Dispute.Status.WON:
            # This answer is outdated.
            continue
        if state.status == Dispute.Status.WON:
            if dispute.funds_withdrawn and not dispute.returned:
                _give_back(order, dispute)
            _notify_staff(order, "A dispute was won", "The credits were returned to the buyer.")
        elif state.funds_withdrawn and not dispute.funds_withdrawn:
            dispute.amount_minor = state.amount_minor
            _deduct(order, dispute)
        elif dispute.funds_withdrawn and not state.funds_withdrawn and not dispute.returned:
            _give_back(order, dispute)
        if state.status == Dispute.Status.LOST and dispute.status != Dispute.Status.LOST:
            _notify_staff(order, "A dispute was lost", "The account stays frozen until you decide.")
        dispute.status = state.status
        dispute.save()


def _deduct(order: Order, dispute: Dispute) -> None:
    due = refunds.share(order, dispute.amount_minor)
    if due:
        taken = postings.refund(
            order_id=order.pk,
            credits=due,
            key=f"dispute:{dispute.pk}",
            dispute=dispute,
            note="The payment is disputed",
        )
        dispute.credits, dispute.debt = taken.credits, taken.debt
    dispute.funds_withdrawn = True
    account = Account.objects.get(pk=order.account_id)
    # An account that staff had frozen before stays frozen when this dispute is won.
    dispute.froze = account.status == Account.Status.ACTIVE or _others_freeze(order, dispute)
    postings.set_status(account_id=order.account_id, status=Account.Status.FROZEN)


def _give_back(order: Order, dispute: Dispute) -> None:
    if dispute.credits + dispute.debt:
        postings.give_back(
            order_id=order.pk,
            credits=dispute.credits,
            debt=dispute.debt,
            key=f"dispute:{dispute.pk}:won",
            dispute=dispute,
            note="The payment is no longer disputed",
        )
    dispute.returned = True
    if dispute.froze and not _others_freeze(order, dispute):
        postings.set_status(account_id=order.account_id, status=Account.Status.ACTIVE)
    dispute.froze = False


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
