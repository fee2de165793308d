"""Entry points of billing's jobs, which workers call with ids.

Redis stores the paths of these functions: a renamed one must keep its old name for one release.
"""

from __future__ import annotations

from uuid import UUID

from billing import schedule
from billing.models import Order, Refund
from billing.payments import auto_top_up, checkout, mail, refunds, webhook_events
from billing.payments.providers import sandbox


def process_event(event_id: int, attempt: int) -> None:
    """Process a stored webhook, unless another job has begun this attempt."""
    webhook_events.process(event_id, attempt)


def sync_order(order_id: str) -> None:
    """Sync an order with its provider; an automatic order that is not yet charged is charged first."""
    order = Order.objects.get(pk=order_id)
    if order.kind == Order.Kind.AUTO and order.provider_order_id is None:
        auto_top_up.charge(order.pk)
    else:
        checkout.sync_order(order.pk)


def ask_refund(refund_id: str) -> None:
    """Sync a refund with its provider, and request it again if the provider has no record of it."""
    refund = Refund.objects.get(pk=refund_id)
    checkout.sync_order(refund.order_id)
    refunds.send(refund.pk)


def send_receipt(order_id: str) -> None:
    """Mail a buyer the receipt of an order. Only the previous release enqueues it."""
    mail.send_receipt(UUID(order_id))


def send_refunded(refund_id: str) -> None:
    """Mail a buyer that a refund is under way. Only the previous release enqueues it."""
    mail.send_refunded(UUID(refund_id))


def top_up(account_id: int) -> None:
    """Buy credits for an account with a low balance, if its owner consented to automatic top-ups."""
    auto_top_up.check(account_id)


def forget_method(user_id: int) -> None:
    """Remove the saved payment method of a user at its provider."""
    auto_top_up.forget(user_id)


def run_task(name: str) -> None:
    """Run a task of billing.schedule."""
    schedule.run(name)


def tell_of_sandbox(payment_id: str, event_type: str) -> None:
    """Deliver a webhook of the sandbox's bank to this site."""
    sandbox.send_webhook(payment_id, event_type)
