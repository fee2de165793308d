"""The personal data of billing: the content of an export, and the changes of a purge.

The ledger, holds, records of usage and orders stay, and belong to the account's tombstone. Invoices stay as they
were issued: tax law demands name and address of the buyer for years (docs/operations/privacy.md).
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import redis
from django.db.models import CharField, Value
from django.db.models.functions import Replace

from billing import queue
from billing.ledger import postings
from billing.models import (
    Account,
    AuditRecord,
    AutoTopUp,
    Order,
    ProviderEvent,
    ProviderRequest,
    Refund,
)
from billing.payments import auto_top_up, invoices
from chatproject.lib import personal_data
from chatproject.lib.db import money_transaction
from chatproject.lib.personal_data import PersonalTable

if TYPE_CHECKING:
    from accounts.models import User

logger = logging.getLogger(__name__)

LEDGER = "The ledger, which belongs to the tombstone."


def register() -> None:
    """Register tables, the closing and steps of the purge."""
    personal_data.add_tables(
        PersonalTable(model="billing.Account", document="account", kept=LEDGER),
        PersonalTable(
            model="billing.CreditLot", user="account__user", document="credits", kept=LEDGER
        ),
        PersonalTable(
            model="billing.ExpiryNotice",
            user="lot__account__user",
            reason="That a mail was sent.",
            kept=LEDGER,
        ),
        PersonalTable(model="billing.Hold", user="account__user", document="holds", kept=LEDGER),
        PersonalTable(
            model="billing.LedgerEntry", user="account__user", document="ledger", kept=LEDGER
        ),
        PersonalTable(
            model="billing.DebtEntry", user="account__user", document="debts", kept=LEDGER
        ),
        PersonalTable(
            model="billing.LotMove",
            user="entry__account__user",
            reason="Parts of the entries in ledger.json.",
            kept=LEDGER,
        ),
        PersonalTable(
            model="billing.AuditRecord",
            user="actor",
            reason="The record of staff's actions.",
            kept="What staff did with money; the address of its account is removed.",
        ),
        PersonalTable(
            model="billing.ModelPrice",
            user="created_by",
            reason="A price by staff.",
            kept="Prices, by which replies were charged.",
        ),
        PersonalTable(
            model="billing.Order",
            document="orders",
            kept="Amounts and the provider's numbers; name, address and links are removed.",
        ),
        PersonalTable(
            model="billing.Invoice",
            user="order__user",
            document="invoices",
            kept="Invoices as issued, which tax law demands.",
        ),
        PersonalTable(
            model="billing.Refund",
            user="order__user",
            document="refunds",
            kept="Amounts; the reason is removed.",
        ),
        PersonalTable(
            model="billing.Dispute", user="order__user", document="disputes", kept="Amounts."
        ),
        PersonalTable(
            model="billing.ProviderEvent",
            user="order__user",
            reason="Messages of the payment provider about the orders in orders.json.",
            kept="That it was received; its content is removed.",
        ),
        PersonalTable(
            model="billing.ProviderRequest",
            user="",
            reason="Requests to the payment provider about the orders in orders.json.",
            kept="Its key; its content is removed.",
        ),
        PersonalTable(
            model="billing.AutoTopUp",
            document="automatic-purchases",
            omitted=("customer_ref", "payment_method_ref"),
            erased_by="payments",
        ),
        PersonalTable(model="billing.InvoiceAddress", document="invoice-address"),
        PersonalTable(
            model="billing.SandboxPayment",
            user="user_id",
            reason="Payments of the sandbox, without money.",
        ),
        PersonalTable(
            model="billing.PromoRedemption",
            document="promo-codes",
            kept="A part of the ledger.",
        ),
        PersonalTable(
            model="billing.UsageRecord",
            document="usage",
            kept="Amounts and the ids of removed chats, without text.",
        ),
        PersonalTable(
            model="billing.DailyUsage", document="daily-usage", kept="Amounts, without text."
        ),
        PersonalTable(
            model="billing.SpendingLimit", user="account__user", document="spending-limits"
        ),
        PersonalTable(
            model="billing.Membership",
            user="account__user",
            document="plans",
            omitted=("actor", "reason"),
        ),
        PersonalTable(
            model="billing.PlanGroup", reason="A group in groups.json that is there by the plan."
        ),
    )
    personal_data.declare_impersonal(
        {
            "billing.Plan": "The site's offer.",
            "billing.LedgerCheck": "Results about accounts, by their ids.",
            "billing.InvoiceCounter": "A number.",
            "billing.CreditPackage": "The site's offer.",
            "billing.PackagePrice": "The site's offer.",
            "billing.PromoCode": "The site's offer.",
        }
    )
    personal_data.add_closing(close)
    personal_data.add_step(30, "payments", erase_payments)
    personal_data.add_step(31, "credits", forfeit)


def close(user: User) -> None:
    """End automatic purchases at once, and have the saved method removed at its provider."""
    AutoTopUp.objects.filter(user=user).update(enabled=False, consented_at=None)
    if AutoTopUp.objects.filter(user=user).exclude(payment_method_ref="").exists():
        try:
            queue.enqueue_forget(user.pk)
        except redis.RedisError as error:
            logger.warning(
                "the saved method of user %d is removed by the purge: %s", user.pk, error
            )


def erase_payments(user: User, deadline: float) -> bool:
    """Remove names, addresses and content from orders and the providers' messages about them.

    Raises ProviderError while the provider of a saved method is unreachable.
    """
    auto_top_up.forget(user.pk)
    AutoTopUp.objects.filter(user=user).delete()
    orders = Order.objects.filter(user=user)
    for order in orders.order_by("pk").iterator():
        if order.is_paid and order.paid_at is not None:
            invoices.of_order(order)  # issued now: a later document could not name its buyer
    orders.update(
        buyer_name="",
        buyer_address="",
        buyer_tax_id="",
        checkout_url="",
        receipt_url="",
        return_to="",
        problem="",
    )
    refunds = Refund.objects.filter(order__user=user)
    refunds.update(reason="", error="")
    ProviderEvent.objects.filter(order__user=user).update(body=b"", headers={}, about={}, error="")
    for rows, kind in ((orders, "order"), (refunds, "refund")):
        ids = [str(pk) for pk in rows.values_list("pk", flat=True)]
        subjects = [f"{kind}{mark}{pk}" for pk in ids for mark in (":", "-")]
        ProviderRequest.objects.filter(subject__in=subjects).update(params="{}")
    _erase_audit(user)
    return True


def _erase_audit(user: User) -> None:
    """Remove the address from the audit records of the account; a trigger permits no other change."""
    found = AuditRecord.objects.filter(target__contains=user.email)
    if found.exists():
        replaced = Replace("target", Value(user.email, CharField()), Value(f"user {user.pk}"))
        found.update(target=replaced)


def forfeit(user: User, deadline: float) -> bool:
    """Expire the credits that are left. A second call finds none."""
    account = Account.objects.filter(user=user).first()
    if account is None:
        return True
    money_transaction(postings.forfeit, account_id=account.pk)
    return not Account.objects.filter(pk=account.pk, balance__gt=0).exists()
