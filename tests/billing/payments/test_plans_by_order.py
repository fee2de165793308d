"""Packages with a plan: a paid order gives it once, and its days go back with the money."""

from __future__ import annotations

import itertools
from contextlib import suppress
from datetime import timedelta

import pytest
from django.db import OperationalError
from django.utils import timezone

from billing.ledger import plans
from billing.models import Account, CreditPackage, Membership, Order, Plan
from billing.payments import checkout, refunds
from billing.payments.providers import sandbox as bank
from tests.billing.payments.test_checkout import failing_at
from tests.support import money, purchases

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("sandbox")]

DAYS = 30
DAY = timedelta(days=1)


@pytest.fixture
def plan() -> Plan:
    return Plan.objects.create(slug="team", name="Team")


def package(plan: Plan) -> CreditPackage:
    return purchases.package(plan=plan, plan_days=DAYS)


def days_left(account: Account) -> int | None:
    """Return the days until the end of the account's plan; None without one."""
    present = plans.membership_of(Account.objects.get(pk=account.pk))
    if present is None:
        return None
    assert present.until is not None
    return round((present.until - timezone.now()) / DAY)


def test_order_gives_its_plan_once_and_extends_it(client, account, plan):
    of = package(plan)
    client.force_login(account.user)
    assert "With the plan Team for 30 days" in client.get("/billing/packages/").text
    first = purchases.paid(account, of)
    plan_days = of.plan_days
    of.plan, of.plan_days = None, None  # the order keeps what was bought
    of.save()
    for _ in range(2):
        checkout.sync_order(first.pk)
    assert days_left(account) == DAYS == plan_days
    membership = Membership.objects.get()
    assert (membership.source, membership.order) == ("order", first)
    purchases.paid(account, package(plan))
    assert days_left(account) == 2 * DAYS
    # A plan without an end is not shortened.
    money.give_plan(account, plan)
    purchases.paid(account, package(plan))
    assert Membership.objects.get(ended_at=None).until is None
    assert money.problems() == []


def test_failure_at_any_statement_gives_the_plan_once(account, plan):
    order = purchases.begun(account, package(plan))
    bank.pay(purchases.bank_id(order))
    for statement in itertools.count(1):
        with failing_at(statement), suppress(OperationalError):
            checkout.sync_order(order.pk)
            break
        assert (days_left(account), money.state(account)[0]) == (None, 0)
    assert days_left(account) == DAYS
    assert Membership.objects.count() == 1


def test_buyer_cannot_refund_an_order_with_a_plan(client, account, plan):
    """The plan's credits may be spent, and a refund of a part would leave the plan."""
    plan.monthly_credits = 1_000_000
    plan.save()
    order = purchases.paid(account, package(plan))
    assert "came with a plan" in refunds.eligible(order)
    client.force_login(account.user)
    client.post(f"/billing/orders/{order.pk}/refund/", {"nonce": "one"})
    assert not order.refunds.exists()
    assert days_left(account) == DAYS


@pytest.mark.parametrize("wins", [True, False])
def test_days_of_the_plan_follow_the_money(account, fakepay, side, provider, plan, wins):
    orders: list[Order] = []
    for _ in range(2):
        order = purchases.begun(account, package(plan), provider=provider)
        side.pay(order.provider_order_id)
        purchases.flush(fakepay)
        order.refresh_from_db()
        orders.append(order)
    first, second = orders
    side.refund(first.provider_payment_id, first.amount_minor // 2)
    purchases.flush(fakepay)
    assert days_left(account) == 2 * DAYS  # for a part of the money they stay
    side.refund(first.provider_payment_id)
    purchases.flush(fakepay)
    assert days_left(account) == DAYS
    dispute = side.open_dispute(second.provider_payment_id)
    side.withdraw(dispute)
    for _ in range(2):
        checkout.sync_order(second.pk)
    assert days_left(account) is None
    assert Account.objects.get(pk=account.pk).plan is None
    getattr(side, "win" if wins else "lose")(dispute)
    for _ in range(2):
        checkout.sync_order(second.pk)
    assert days_left(account) == (DAYS if wins else None)
    assert money.problems() == []
