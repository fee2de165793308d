"""Saved payment methods, which their buyers agreed to have charged again, and their failures.

billing.payments.auto_top_up decides when to charge one; billing.payments.checkout reports orders
here as they are paid or fail.
"""

from __future__ import annotations

from django.conf import settings
from django.db.models import QuerySet

from billing.models import AutoTopUp, Order
from billing.payments import mail
from billing.payments.providers.base import OrderState
from chatproject.lib.db import after_commit

MAX_FAILURES = 3  # in a row; then automatic purchases are turned off
TO_BE_CONFIRMED = "authentication_required"  # Stripe's code, and the sandbox's


def is_wanted(user_id: int) -> bool:
    """Return whether the method of this user's next purchase is to be saved."""
    return settings.AUTO_TOP_UP and consents(user_id).exists()


def consents(user_id: int) -> QuerySet[AutoTopUp]:
    """Return a user's consent to automatic purchases, while it is in force: one row or none."""
    return AutoTopUp.objects.filter(user_id=user_id, enabled=True, consented_at__isnull=False)


def note_paid(order: Order, state: OrderState) -> None:
    """Save the method of a paid order if its buyer agreed to it. Under the order's lock."""
    if order.kind == Order.Kind.AUTO:
        AutoTopUp.objects.filter(user_id=order.user_id).update(failures=0, last_failure="")
    elif settings.AUTO_TOP_UP and state.payment_method_ref:
        consents(order.user_id).update(
            provider=order.provider,
            customer_ref=state.customer_ref,
            payment_method_ref=state.payment_method_ref,
        )


def note_failed(order: Order, *, code: str = "") -> None:
    """Count a failed automatic order, and mail the user when an action of theirs is needed.

    Under the order's lock. `code` is the provider's own word for the reason.
    """
    if order.kind != Order.Kind.AUTO:
        return
    top_up = AutoTopUp.objects.select_for_update().get(user_id=order.user_id)
    top_up.failures += 1
    top_up.last_failure = order.problem
    if top_up.failures >= MAX_FAILURES:
        top_up.enabled = False
    top_up.save()
    to_be_confirmed = code == TO_BE_CONFIRMED
    if to_be_confirmed or not top_up.enabled:
        after_commit(mail.send_top_up_failed, order.pk, to_be_confirmed=to_be_confirmed)
