"""Purchases of credits: an order is made, the provider is asked for its state, credits are added once.

`sync_order` is the only judge. The webhook, the return page, the poller and staff all call it, at
any time and as often as they like: it asks the provider, compares, and moves the order forward only.
No transaction is open while the provider is asked.
"""

from __future__ import annotations

import logging
from datetime import datetime, timedelta
from uuid import UUID

from django.conf import settings
from django.utils import timezone
from django.utils.http import url_has_allowed_host_and_scheme
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from billing.ledger import plans, postings, signup
from billing.models import (
    Account,
    CreditPackage,
    Dispute,
    InvoiceAddress,
    LedgerEntry,
    Order,
    PackagePrice,
    Refund,
)
from billing.payments import disputes, invoices, mail, providers, refunds, saved_methods
from billing.payments.packages import lock_order
from billing.payments.providers.base import (
    Checkout,
    OrderState,
    ProviderDeclined,
    ProviderError,
    ProviderNotConfigured,
    Standing,
    UnreadableAnswer,
)
from billing.payments.providers.payload import MAX_URL
from chatproject.lib.db import after_commit, money_transaction
from chatproject.lib.log_events import log_event

logger = logging.getLogger(__name__)

# An order unpaid at this age is canceled; a payment that arrives later still counts.
ABANDONED = timedelta(hours=72)

# Times that a sync asks the provider again because concurrent ones overtake it.
OVERTAKEN = 3

ALREADY_PAID = gettext_lazy("This purchase is paid already. The credits are in your account.")

CLOSED_WORDS = {
    Order.Status.CANCELED: "was canceled",
    Order.Status.FAILED: gettext_lazy("did not go through"),
    Order.Status.REVIEW: gettext_lazy("is in review by our staff"),
}


class CheckoutRefused(Exception):
    """A purchase cannot continue; `message` gives the buyer the reason and what to do."""

    def __init__(self, message: str) -> None:
        self.message = message
        super().__init__(message)


# --- Making an order ---------------------------------------------------------------------------


def create_order(
    *,
    user_id: int,
    package_id: int,
    currency: str,
    provider: str,
    client_key: str,
    return_to: str = "",
) -> Order:
    """Make an order, or find the one that the same user made with the same `client_key` before.

    Amount and credits come from the database. `return_to` is a path of this site; anything else is
    dropped. Raises CheckoutRefused.
    """
    if not 1 <= len(client_key) <= 64:
        raise CheckoutRefused(_("This form is out of date. Reload the page and try again."))

    def create() -> Order:
        # The account's row makes a double click wait, so that the second finds the first one's order.
        account = signup.open_account(user_id=user_id)
        Account.objects.select_for_update(no_key=True).get(pk=account.pk)
        found = Order.objects.filter(user_id=user_id, client_key=client_key).first()
        if found is not None:
            return found
        if account.status == Account.Status.FROZEN:
            raise CheckoutRefused(
                _("Your account is frozen, so you cannot buy credits. Contact us.")
            )
        order = draft(
            account=account,
            package_id=package_id,
            currency=currency.upper(),
            provider=provider,
            client_key=client_key,
        )
        order.return_to = own_path(return_to)
        order.save(force_insert=True)
        return order

    return money_transaction(create)


def own_path(path: str) -> str:
    """Return the path if it is one of this site and fits into an order; else an empty string."""
    is_own = path.startswith("/") and url_has_allowed_host_and_scheme(path, allowed_hosts=None)
    return path if is_own and len(path) <= 500 else ""


def draft(
    *, account: Account, package_id: int, currency: str, provider: str, client_key: str
) -> Order:
    """Return an unsaved order with the package's present contents and price.

    Raises CheckoutRefused when the package, the currency or the provider is not on offer.
    """
    package = CreditPackage.objects.filter(pk=package_id, active=True).first()
    if package is None:
        raise CheckoutRefused(_("This package is no longer available. Choose another one."))
    price = PackagePrice.objects.filter(package=package, currency=currency).first()
    if price is None or currency not in settings.CURRENCIES:
        raise CheckoutRefused(
            _("This package is not available in %(currency)s. Choose another currency.")
            % {"currency": currency[:3]}
        )
    adapter = next((known for known in providers.enabled() if known.name == provider), None)
    if adapter is None:
        raise CheckoutRefused(_("This payment method is not available. Choose another one."))
    buyer = InvoiceAddress.objects.filter(user_id=account.user_id).first() or InvoiceAddress()
    return Order(
        buyer_name=buyer.name,
        buyer_address=buyer.address,
        buyer_tax_id=buyer.tax_id,
        user_id=account.user_id,
        account=account,
        client_key=client_key,
        package=package,
        package_name=package.name,
        credits=package.credits,
        bonus=package.bonus,
        valid_days=package.valid_days,
        plan_id=package.plan_id,
        plan_days=package.plan_days,
        amount_minor=price.amount_minor,
        currency=currency,
        provider=provider,
        livemode=adapter.livemode,
    )


def begin(order_id: UUID, *, return_url: str, cancel_url: str) -> Checkout:
    """Make the provider's side of an order, and return the page to send the buyer to.

    Both addresses are absolute. May be called again while the order is open. Raises
    CheckoutRefused.
    """
    order = Order.objects.get(pk=order_id)
    if order.is_paid:
        raise CheckoutRefused(str(ALREADY_PAID))
    if order.status not in Order.OPEN:
        raise CheckoutRefused(
            _("This purchase %(status)s. Start a new one.")
            % {"status": CLOSED_WORDS[Order.Status(order.status)]}
        )
    try:
        provider = providers.get(order.provider)
        checkout = provider.create_checkout(
            order,
            return_url=return_url,
            cancel_url=cancel_url,
            save_method=saved_methods.is_wanted(order.user_id),
        )
    except ProviderNotConfigured as error:
        raise CheckoutRefused(
            _("This payment method is no longer available. Start a new purchase.")
        ) from error
    except ProviderDeclined as error:
        logger.warning("%s declined %s: %s", order.provider, order, error)
        _close_unless_paid(order, str(error))
        raise CheckoutRefused(
            f"{provider.label} declined this purchase. Nothing was charged. Choose another payment method."
        ) from error
    except ProviderError as error:
        logger.warning("%s did not answer for %s: %s", order.provider, order, error)
        raise CheckoutRefused(
            f"{provider.label} is not responding. Nothing was charged. Try again in a minute."
        ) from error
    money_transaction(_remember, order_id, checkout)
    return checkout


def _close_unless_paid(order: Order, problem: str) -> None:
    """Close an order that the provider refuses, perhaps because it was paid in another window."""
    if order.provider_order_id is not None:
        try:
            if sync_order(order.pk).is_paid:
                raise CheckoutRefused(str(ALREADY_PAID))
        except ProviderError as error:
            logger.warning("%s did not answer for %s: %s", order.provider, order, error)
            return

    def close() -> None:
        found = lock_order(order.pk)
        if found.status in Order.OPEN:
            found.status = Order.Status.FAILED
            found.problem = problem[:300]
            found.save()

    money_transaction(close)


def _remember(order_id: UUID, checkout: Checkout) -> None:
    order = lock_order(order_id)
    if order.provider_order_id not in (None, checkout.provider_order_id):
        # Never forget the first one: it may have been paid.
        raise CheckoutRefused(
            _("This purchase is out of date. Nothing was charged. Start a new one.")
        )
    order.provider_order_id = checkout.provider_order_id
    order.checkout_url = checkout.url if len(checkout.url) <= MAX_URL else ""
    if order.status == Order.Status.CREATED:
        order.status = Order.Status.PENDING
    order.save()


# --- Applying the provider's state -------------------------------------------------------------


def sync_order(order_id: UUID, *, provider_order_id: str = "") -> Order:
    """Fetch an order's state from the provider and apply it: credits, refunds, disputes, each once.

    `provider_order_id` is for an order whose first answer from the provider was lost. Raises
    ProviderError when the provider cannot be asked.
    """
    for _turn in range(OVERTAKEN):
        order = Order.objects.get(pk=order_id)
        order.provider_order_id = order.provider_order_id or provider_order_id or None
        try:
            state = providers.get(order.provider).fetch(order)
        except UnreadableAnswer as error:
            logger.exception("%s cannot be synced", order)
            return money_transaction(apply_unreadable, order_id, str(error))
        synced = money_transaction(_apply_newest, order_id, state, order.asked_at)
        if synced is not None:
            return synced
    return money_transaction(apply_state, order_id, state)


def _apply_newest(order_id: UUID, state: OrderState, asked_at: datetime | None) -> Order | None:
    """Apply a state, or return None if a concurrent sync may have applied a newer one.

    Refunds and disputes change back and forth, so an older state would undo the newer one.
    """
    order = lock_order(order_id)
    if order.is_paid and order.asked_at != asked_at:
        return None
    return apply_state(order_id, state)


def apply_unreadable(order_id: UUID, problem: str) -> Order:
    """Put an order whose state cannot be read into review. Called inside `money_transaction`."""
    order = lock_order(order_id)
    order.asked_at = timezone.now()
    _stop_for_review(order, problem)
    return order


def apply_state(order_id: UUID, state: OrderState) -> Order:
    """Bring an order to its state at the provider. Called inside `money_transaction`."""
    order = lock_order(order_id)
    now = timezone.now()
    order.asked_at = now
    problem = _mismatch(order, state)
    if problem:
        _stop_for_review(order, problem)
        return order
    order.provider_order_id = state.provider_order_id or None
    order.provider_payment_id = state.payment_id or order.provider_payment_id
    order.receipt_url = state.receipt_url or order.receipt_url
    if state.standing is Standing.PAID and not order.is_paid:
        order.tax_minor, order.tax_rate = state.tax_minor, state.tax_rate
        if state.buyer is not None:
            order.buyer_name, order.buyer_address = state.buyer.name, state.buyer.address
            order.buyer_tax_id = state.buyer.tax_id or order.buyer_tax_id
        _credit(order, now)
        saved_methods.note_paid(order, state)
    elif not order.is_paid:
        _apply_unpaid(order, state, now)
    if order.is_paid:
        invoices.issue(order)  # before a refund is added, for orders of earlier releases
        _note_other_payments(order, state)
        refunds.apply_state(order, state.refunds)
        disputes.apply_state(order, state.disputes)
        refunds.add_up(order)
        invoices.issue(order)
    else:
        order.save()
    return order


def _mismatch(order: Order, state: OrderState) -> str:
    """Return a sentence for staff on the first difference to our order; empty when there is none."""
    pairs = [
        ("its number", order.provider_order_id or state.provider_order_id, state.provider_order_id),
        ("the amount", order.amount_minor, state.amount_minor),
        ("the currency", order.currency, state.currency.upper()),
        ("live mode", order.livemode, state.livemode),
        ("our order", str(order.pk), state.order_id),
        ("the buyer", str(order.user_id), state.user_id),
    ]
    if order.is_paid:
        paid_by = order.provider_payment_id or state.payment_id
        pairs.append(("the payment", paid_by, state.payment_id or paid_by))
    if state.payment_order_id is not None:
        pairs.append(("the order of the payment", str(order.pk), state.payment_order_id))
    for what, ours, theirs in pairs:
        if ours != theirs:
            return _(
                "The provider has another value for %(what)s: %(theirs)s instead of %(ours)s."
            ) % {"what": what, "theirs": repr(theirs), "ours": repr(ours)}
    if not 0 <= state.tax_minor <= order.amount_minor:
        return _("The provider's tax of %(tax_minor)s is more than the amount.") % {
            "tax_minor": state.tax_minor
        }
    used = Order.objects.filter(
        provider=order.provider, provider_payment_id=state.payment_id or ""
    ).exclude(pk=order.pk)
    if state.payment_id and used.exists():
        return _("The payment %(payment_id)s belongs to another order.") % {
            "payment_id": state.payment_id
        }
    refund_ids, dispute_ids = (
        [one.id for one in found] for found in (state.refunds, state.disputes)
    )
    if Refund.objects.filter(provider_refund_id__in=refund_ids).exclude(order=order).exists():
        return _("The provider names a refund of another order.")
    others = Dispute.objects.filter(provider=order.provider).exclude(order=order)
    if others.filter(provider_dispute_id__in=dispute_ids).exists():
        return _("The provider names a dispute of another order.")
    return ""


def _stop_for_review(order: Order, problem: str) -> None:
    """Add no credits and alert staff, once for each problem."""
    is_new = order.problem != problem[:300]
    order.problem = problem[:300]
    if not order.is_paid:
        is_new = is_new or order.status != Order.Status.REVIEW
        order.status = Order.Status.REVIEW
    order.save()
    if is_new:
        credited = _("its credits stay") if order.is_paid else _("nothing was credited")
        text = _("Order %(pk)s (%(provider)s) needs a review, %(credited)s. %(problem)s") % {
            "pk": order.pk,
            "provider": order.provider,
            "credited": credited,
            "problem": problem,
        }
        after_commit(mail.alert, _("A payment does not match"), text)


def _note_other_payments(order: Order, state: OrderState) -> None:
    """Show payments on a paid order that paid it once more, and alert staff about each new one."""
    problem = ""
    if state.other_payments:
        payments = ", ".join(state.other_payments)
        problem = _(
            "It was paid more than once, by %(payments)s too. Refund that money at the provider."
        ) % {"payments": payments}
    is_new = problem[:300] != order.problem
    order.problem = problem[:300]
    if problem and is_new:
        text = _(
            "Order %(pk)s (%(provider)s) needs a review, it was credited once. %(problem)s"
        ) % {"pk": order.pk, "provider": order.provider, "problem": problem}
        after_commit(mail.alert, _("A purchase was paid twice"), text)


def _credit(order: Order, now: datetime) -> None:
    """Add the plan and the credits. Keys make it once, whatever the order's status is."""
    plans.add_bought(order, now)
    order.status = Order.Status.PAID
    order.paid_at = now
    order.problem = ""
    expires_at = now + timedelta(days=order.valid_days) if order.valid_days else None
    postings.grant(
        account_id=order.account_id,
        amount=order.credits,
        key=f"purchase:{order.pk}",
        kind=LedgerEntry.Kind.PURCHASE,
        expires_at=expires_at,
        order=order,
        paid_minor=order.amount_minor,
        currency=order.currency,
        note=order.package_name,
    )
    if order.bonus:
        postings.grant(
            account_id=order.account_id,
            amount=order.bonus,
            key=f"purchase:{order.pk}:bonus",
            kind=LedgerEntry.Kind.BONUS,
            expires_at=expires_at,
            order=order,
            currency=order.currency,
            note=order.package_name,
        )
    order.invoice_no = invoices.next_number()
    after_commit(mail.send_receipt, order.pk)
    after_commit(
        log_event,
        "order_paid",
        order_id=order.pk,
        user_id=order.user_id,
        provider=order.provider,
        amount_minor=order.amount_minor,
        currency=order.currency,
        microcredits=order.credits + order.bonus,
    )


def _apply_unpaid(order: Order, state: OrderState, now: datetime) -> None:
    if state.standing is Standing.FAILED:
        is_new = order.status != Order.Status.FAILED
        order.status = Order.Status.FAILED
        order.problem = state.problem[:300]
        if is_new:
            saved_methods.note_failed(order, code=state.problem_code)
    elif state.standing is Standing.CANCELED:
        order.status = Order.Status.CANCELED
        order.problem = ""
    elif order.status == Order.Status.REVIEW:
        # An automatic order without a trace at the provider is left to staff (auto_top_up).
        if order.kind != Order.Kind.AUTO or order.provider_order_id:
            # The mismatch no longer exists.
            order.status = Order.Status.PENDING
            order.problem = ""
    elif order.status in Order.OPEN:
        if order.created_at < now - ABANDONED:
            order.status = Order.Status.CANCELED
        elif order.provider_order_id:
            order.status = Order.Status.PENDING
