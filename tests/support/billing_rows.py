"""At least one row in every table of billing, so that no page of the admin is empty."""

from __future__ import annotations

import uuid
from datetime import timedelta

from django.contrib.auth.models import Group
from django.utils import timezone

from billing.credits import MICRO
from billing.ledger import promo_codes, staff_actions
from billing.models import (
    Account,
    AutoTopUp,
    CreditLot,
    CreditPackage,
    DailyUsage,
    Dispute,
    ExpiryNotice,
    Invoice,
    InvoiceAddress,
    InvoiceCounter,
    LedgerCheck,
    ModelPrice,
    Order,
    PackagePrice,
    Plan,
    PromoCode,
    ProviderEvent,
    ProviderRequest,
    Refund,
    SandboxPayment,
    SpendingLimit,
)
from billing.models.usage import Purpose
from tests.support import money


def make() -> Account:
    """Create an account with every kind of event, and rows in all other tables of billing."""
    now = timezone.now()
    group, _ = Group.objects.get_or_create(name="Pupils")
    plan = Plan.objects.create(
        slug="school", name="School", monthly_credits=100 * MICRO, group=group
    )
    account = money.open_account()
    money.give_plan(account, plan)
    order = money.order(
        account, 1000 * MICRO, paid_at=now, invoice_no=1, provider_payment_id="pay_1"
    )
    PackagePrice.objects.create(package=order.package, currency="USD", amount_minor=500)
    money.settle(money.hold(account, 5 * MICRO, model="stub-model"), cost=2 * MICRO)
    money.hold(account, 7 * MICRO, model="stub-model")
    refund = Refund.objects.create(
        order=order, amount_minor=100, status=Refund.Status.SUCCEEDED, initiated_by="staff"
    )
    # More than the balance: the rest becomes debt.
    money.refund(order, 1200 * MICRO, refund=refund)
    Dispute.objects.create(
        order=order, provider="sandbox", provider_dispute_id="dp_1", amount_minor=50
    )
    InvoiceAddress.objects.create(user_id=account.user_id, name="Ann")
    Invoice.objects.create(
        order=order, kind="invoice", position=0, number="000001", issued_on=timezone.localdate(),
        amount_minor=500, tax_minor=0, currency="USD", content={},
    )  # fmt: skip
    ProviderRequest.objects.create(
        provider="stripe", subject=f"order:{order.pk}", number=1, params="{}"
    )
    ProviderEvent.objects.create(
        provider="sandbox",
        event_id="evt_1",
        event_type="payment.captured",
        body=b'{"id": "pay_1", "note": "<b>caf\xc3\xa9</b>"}',
        status=ProviderEvent.Status.REVIEW,
        order=order,
        error="It did not answer.",
    )
    PromoCode.objects.create(code="WELCOME", credits=300 * MICRO, max_redemptions=5)
    promo_codes.redeem(user_id=account.user_id, code="WELCOME")
    ExpiryNotice.objects.create(lot=CreditLot.objects.get(kind="promo"), days=14)
    staff_actions.give_or_take(
        actor_id=account.user_id,
        account_id=account.pk,
        amount=5 * MICRO,
        reason="For the outage",
        nonce=str(uuid.uuid4()),
        ip="127.0.0.1",
    )
    ModelPrice.objects.create(
        model="stub-model",
        effective_from=now - timedelta(days=1),
        in_per_m=15 * MICRO,
        cached_in_per_m=7_500_000,
        out_per_m=60 * MICRO,
        tiers=[{"above": 200_000, "in_per_m": 30 * MICRO, "out_per_m": 90 * MICRO}],
    )
    DailyUsage.objects.create(
        day=timezone.localdate() - timedelta(days=1), user_id=account.user_id, model="stub-model",
        purpose=Purpose.CHAT, calls=1, input_tokens=10, cached_tokens=0, output_tokens=5,
        reasoning_tokens=0, cost=MICRO, charged=MICRO, shortfall=0, absorbed=0,
    )  # fmt: skip
    SpendingLimit.objects.create(account=account, period="day", amount=50 * MICRO)
    AutoTopUp.objects.create(
        user_id=account.user_id,
        threshold=10 * MICRO,
        package=CreditPackage.objects.get(),
        currency="USD",
        monthly_cap_minor=2000,
    )
    SandboxPayment.objects.create(
        id="sb_1",
        order_id=order.pk,
        user_id=account.user_id,
        amount_minor=500,
        currency="USD",
        idempotency_key="order:1",
    )
    InvoiceCounter.objects.create(series="invoice", last=1)
    LedgerCheck.objects.create(started_at=now, entries=12)
    account.refresh_from_db()
    return account


def an_order() -> Order:
    """The paid order of `make`."""
    return Order.objects.get(provider_payment_id="pay_1")
