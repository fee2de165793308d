"""Automatic purchases of a package when the balance is low; behind the setting AUTO_TOP_UP.

The user agrees once to a package, a threshold and a cap per month. A charge is claimed by one
conditional update before the provider is called, and the claim stays when the charge fails: the cap
is a guarantee, and a declined card is not charged again for an hour.
"""

from __future__ import annotations

import logging
from datetime import timedelta
from uuid import UUID

from django.conf import settings
from django.db import transaction
from django.db.models import Case, F, PositiveBigIntegerField, Value, When
from django.utils import timezone
from django.utils.translation import gettext as _

from billing import queue
from billing.models import Account, AutoTopUp, CreditPackage, Order, PackagePrice
from billing.models.base import new_id
from billing.payments import checkout, mail, providers, saved_methods
from billing.payments.checkout import CheckoutRefused
from billing.payments.packages import lock_order
from billing.payments.providers.base import (
    ProviderDeclined,
    ProviderError,
    ProviderNotConfigured,
)
from chatproject.lib.db import after_commit, money_transaction

logger = logging.getLogger(__name__)

COOLDOWN = timedelta(hours=1)  # between two charges, whatever the first one's outcome
# Providers forget idempotency keys after a day. A charge still unknown at this age is left to staff.
RETRY_PERIOD = timedelta(hours=20)


class TopUpRefused(Exception):
    """Automatic purchases cannot be set up like this; `message` gives the user the reason."""

    def __init__(self, message: str) -> None:
        self.message = message
        super().__init__(message)


# --- The user's decision -----------------------------------------------------------------------


def consent(
    *, user_id: int, package_id: int, currency: str, threshold: int, monthly_cap_minor: int
) -> AutoTopUp:
    """Agree to automatic purchases, or change their terms. `threshold` in micro-credits.

    Without a saved payment method, that of the user's next purchase is saved. Charges already made
    this month still count towards the cap. Raises TopUpRefused.
    """
    if not settings.AUTO_TOP_UP:
        raise TopUpRefused(_("Automatic purchases are not offered here."))
    price = PackagePrice.objects.filter(
        package_id=package_id, package__active=True, currency=currency
    ).first()
    if price is None or currency not in settings.CURRENCIES:
        raise TopUpRefused(_("This package is no longer available. Choose another one."))
    if threshold <= 0:
        raise TopUpRefused(_("Choose a balance above zero."))
    if monthly_cap_minor < price.amount_minor:
        raise TopUpRefused(_("The monthly limit is lower than the price of one package. Raise it."))
    package = CreditPackage.objects.get(pk=package_id)
    if threshold >= package.credits:
        raise TopUpRefused(
            _("One package would not raise the balance above this threshold. Choose a lower one.")
        )
    with transaction.atomic():
        top_up = AutoTopUp.objects.select_for_update().filter(user_id=user_id).first()
        if top_up is None:
            top_up = AutoTopUp(user_id=user_id)
        elif monthly_cap_minor < top_up.charged_this_month_minor:
            if top_up.month == timezone.localdate().replace(day=1):
                raise TopUpRefused(_("More than this has already been charged this month."))
            top_up.charged_this_month_minor = 0
        top_up.package = package
        top_up.currency = currency
        top_up.threshold = threshold
        top_up.monthly_cap_minor = monthly_cap_minor
        top_up.enabled = True
        top_up.consented_at = timezone.now()
        top_up.failures = 0
        top_up.last_failure = ""
        top_up.save()
    return top_up


def withdraw(user_id: int) -> None:
    """Turn automatic purchases off and forget the payment method. A charge in progress completes."""
    AutoTopUp.objects.filter(user_id=user_id).update(
        enabled=False,
        consented_at=None,
        provider="",
        customer_ref="",
        payment_method_ref="",
        updated_at=timezone.now(),
    )


def forget(user_id: int) -> None:
    """Turn automatic purchases off, and remove the saved method at its provider, then here.

    A restored user may have saved another one meanwhile, which stays. Raises ProviderError while the provider is
    unreachable: call it again then.
    """
    top_up = AutoTopUp.objects.filter(user_id=user_id, enabled=False).first()
    if top_up is None:
        return
    if top_up.payment_method_ref:
        try:
            providers.get(top_up.provider).forget_saved(top_up)
        except ProviderNotConfigured:
            logger.warning("the method of user %d is left at %s", user_id, top_up.provider)
        except ProviderDeclined as error:
            logger.warning("the method of user %d is not at its provider: %s", user_id, error)
    AutoTopUp.objects.filter(
        pk=top_up.pk, enabled=False, payment_method_ref=top_up.payment_method_ref
    ).update(
        consented_at=None,
        provider="",
        customer_ref="",
        payment_method_ref="",
        updated_at=timezone.now(),
    )


# --- Buying ------------------------------------------------------------------------------------


def after_spend(account_id: int) -> None:
    """Enqueue a purchase check when the balance is below the threshold. One query."""
    account = Account.objects.filter(
        pk=account_id,
        user__auto_top_up__enabled=True,
        balance__lt=F("held") + F("user__auto_top_up__threshold"),
    ).exclude(user__auto_top_up__cooldown_until__gt=timezone.now())
    if account.exists():
        queue.enqueue_top_up(account_id)


def check(account_id: int) -> Order | None:
    """Buy the package if the balance is low, the cap allows it and the cooldown has passed."""
    if not settings.AUTO_TOP_UP:
        return None
    try:
        order = money_transaction(_claim, account_id)
    except CheckoutRefused as error:
        logger.warning("account %d cannot be topped up: %s", account_id, error)
        return None
    return charge(order.pk) if order else None


def _claim(account_id: int) -> Order | None:
    """Claim a charge against the month's cap and make its order, both or neither."""
    account = Account.objects.select_for_update(no_key=True).get(pk=account_id)
    top_up = (
        saved_methods.consents(account.user_id)
        .select_for_update()
        .exclude(payment_method_ref="")
        .first()
    )
    if top_up is None:
        return None
    in_flight = Order.objects.filter(
        user_id=account.user_id, kind=Order.Kind.AUTO, status__in=Order.OPEN
    )
    is_low = account.available < top_up.threshold
    if not is_low or account.status != Account.Status.ACTIVE or in_flight.exists():
        return None
    order = checkout.draft(
        account=account,
        package_id=top_up.package_id,
        currency=top_up.currency,
        provider=top_up.provider,
        client_key=f"auto:{new_id()}",
    )
    order.kind = Order.Kind.AUTO
    now = timezone.now()
    month = timezone.localdate().replace(day=1)
    charged = Case(
        When(month=month, then=F("charged_this_month_minor")),
        default=Value(0),
        output_field=PositiveBigIntegerField(),
    )
    claimed = (
        AutoTopUp.objects.annotate(charged=charged + order.amount_minor)
        .filter(pk=top_up.pk, enabled=True, charged__lte=F("monthly_cap_minor"))
        .exclude(cooldown_until__gt=now)
        .update(
            charged_this_month_minor=charged + order.amount_minor,
            month=month,
            cooldown_until=now + COOLDOWN,
            updated_at=now,
        )
    )
    if not claimed:
        return None
    order.save(force_insert=True)
    return order


def charge(order_id: UUID) -> Order:
    """Charge the saved method for an automatic order. Safe to repeat: the provider charges once."""
    order = Order.objects.get(pk=order_id)
    if order.status not in Order.OPEN or order.provider_order_id is not None:
        return order
    top_up = AutoTopUp.objects.get(user_id=order.user_id)
    if order.created_at < timezone.now() - RETRY_PERIOD or not top_up.payment_method_ref:
        return _give_up(order_id)
    try:
        state = providers.get(order.provider).charge_saved(order, top_up)
    except ProviderDeclined as error:
        return money_transaction(_fail, order_id, str(error), error.code)
    except ProviderError as error:
        # Unknown: the poller charges again, under the same key.
        logger.warning("the outcome of the charge for %s is unknown: %s", order, error)
        return order
    return money_transaction(checkout.apply_state, order_id, state)


def _give_up(order_id: UUID) -> Order:
    """Leave an order to staff, unless the provider has a record of its charge."""
    try:
        checkout.sync_order(order_id)
    except ProviderError as error:
        logger.warning("the outcome of the charge for order %s is unknown: %s", order_id, error)
    return money_transaction(_leave_to_staff, order_id)


def _leave_to_staff(order_id: UUID) -> Order:
    order = lock_order(order_id)
    if order.status in Order.OPEN and order.provider_order_id is None:
        order.status = Order.Status.REVIEW
        order.problem = _("Unknown whether the saved method was charged. Check at the provider.")
        order.save()
        text = f"Order {order.pk} ({order.provider}): {order.problem}"
        after_commit(mail.alert, _("An automatic purchase is unclear"), text)
    return order


def _fail(order_id: UUID, problem: str, code: str) -> Order:
    order = lock_order(order_id)
    if order.status in Order.OPEN:
        order.status = Order.Status.FAILED
        order.problem = problem[:300]
        order.save()
        saved_methods.note_failed(order, code=code)
    return order
