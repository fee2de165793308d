"""The ledger's operations with defaults, for tests: each call is a separate money transaction."""

from __future__ import annotations

import uuid
from datetime import datetime, timedelta
from typing import Any

from django.contrib.auth import get_user_model
from django.db import connection
from django.utils import timezone

from accounts.models import User
from billing.ledger import audit, plans, signup
from billing.ledger import postings as postings  # mutation tests replace it
from billing.metering import usage
from billing.metering.pricing import Tokens
from billing.models import Account, CreditPackage, Dispute, Hold, Order, Plan, Refund, UsageRecord
from chatproject.lib.db import money_transaction


def open_account(credits: int = 0) -> Account:
    """Create a user with an account that has a number of micro-credits."""
    user = get_user_model().objects.create_user(f"{uuid.uuid4().hex}@example.org")
    account = money_transaction(signup.open_account, user_id=user.pk)
    if credits:
        grant(account, credits)
    return account


def set_available(user: User, credits: int) -> Account:
    """Adjust a user's available micro-credits through the ledger; return the account as it was before."""
    account = signup.account_of(user.pk)
    adjust(account, credits - account.available)
    return account


def give_plan(account: Account, plan: Plan | None, until: datetime | None = None) -> bool:
    """Give an account a plan, as staff do; return whether that changed anything."""
    return money_transaction(
        plans.change,
        account_id=account.pk,
        plan_id=plan.pk if plan else None,
        source=plans.Source.STAFF,
        until=until,
    )


def grant(account: Account, amount: int, **fields) -> postings.Posted:
    fields.setdefault("key", uuid.uuid4().hex)
    return money_transaction(postings.grant, account_id=account.pk, amount=amount, **fields)


def hold(account: Account, amount: int, **fields) -> Hold:
    fields.setdefault("key", uuid.uuid4().hex)
    fields.setdefault("expires_at", timezone.now() + timedelta(minutes=20))
    return money_transaction(postings.hold, account_id=account.pk, amount=amount, **fields)


def settle(held: Hold, cost: int, **usage_fields) -> postings.Settlement:
    """Settle a hold as chat does, with its usage record in the same transaction."""
    return money_transaction(settle_and_record, held, cost, **usage_fields)


def settle_and_record(held: Hold, cost: int, **usage_fields) -> postings.Settlement:
    done = postings.settle(hold_id=held.pk, cost=cost)
    if done.is_new and cost:
        record(held, charged=done.charged, shortfall=done.shortfall, **usage_fields)
    return done


def record(held: Hold, *, charged: int = 0, shortfall: int = 0, **fields) -> None:
    """Record the usage that a hold paid for."""
    defaults: dict[str, Any] = {
        "run_id": uuid.uuid4(),
        "attempt": 1,
        "user_id": held.account.user_id,
        "model": held.model or "stub-model",
        "conversation": held.conversation,
        "tokens": Tokens(input=10, output=5),
        "source": UsageRecord.Source.PROVIDER,
        "finish": UsageRecord.Finish.COMPLETE,
        "hold_id": held.pk,
        "cost": charged + shortfall,
        "absorbed": 0,
    }
    usage.record(charged=charged, shortfall=shortfall, **defaults | fields)


def spend(account: Account, amount: int, **fields) -> Hold:
    """Hold an amount and settle it in full, as a reply does."""
    held = hold(account, amount, **fields)
    settle(held, amount)
    return held


def release(held: Hold) -> None:
    money_transaction(postings.release, hold_id=held.pk)


def expire(account: Account) -> int:
    return money_transaction(postings.expire, account_id=account.pk)


def adjust(account: Account, amount: int, **fields) -> postings.Posted:
    """Post a correction, by default by the account's own user."""
    fields.setdefault("key", uuid.uuid4().hex)
    fields.setdefault("actor_id", account.user_id)
    fields.setdefault("note", "a correction")
    return money_transaction(postings.adjust, account_id=account.pk, amount=amount, **fields)


def order(account: Account, credits: int = 1000, **fields) -> Order:
    """Create a paid order, with its credits."""
    bonus = fields.get("bonus", 0)
    package = CreditPackage.objects.get_or_create(
        slug="pack", defaults={"name": "Pack", "credits": 1000}
    )[0]
    made = Order.objects.create(
        **{
            "user_id": account.user_id,
            "account": account,
            "status": Order.Status.PAID,
            "client_key": uuid.uuid4().hex,
            "package": package,
            "package_name": package.name,
            "credits": credits,
            "amount_minor": 500,
            "currency": "USD",
            "provider": "sandbox",
            **fields,
        }
    )
    if made.is_paid:
        kinds = postings.Kind
        grant(account, credits, kind=kinds.PURCHASE, key=f"purchase:{made.pk}", order=made)
        if bonus:
            grant(account, bonus, kind=kinds.BONUS, key=f"purchase:{made.pk}:bonus", order=made)
    return made


def refund(of: Order, credits: int, **fields) -> postings.TakenBack:
    fields.setdefault("key", uuid.uuid4().hex)
    return money_transaction(postings.refund, order_id=of.pk, credits=credits, **fields)


def give_back(of: Order, credits: int, debt: int, **fields) -> None:
    fields.setdefault("key", uuid.uuid4().hex)
    money_transaction(postings.give_back, order_id=of.pk, credits=credits, debt=debt, **fields)


def state(account: Account) -> tuple[int, int, int]:
    """The account's balance, held amount and debt."""
    account.refresh_from_db()
    return account.balance, account.held, account.debt


def problems(account: Account | None = None) -> list[str]:
    """The problems that the audit finds, as "code: message"."""
    found = audit.check(account_id=account.pk if account else None)
    return [f"{one.code}: {one.message}" for one in found]


def ledger_problems(account: Account | None = None) -> list[str]:
    """The problems of tests that take back credits without money: amounts are not compared."""
    return [one for one in problems(account) if not one.startswith("order_money_back:")]


def tamper(query: str, *values: Any) -> None:
    """Change rows with all triggers off, even those of foreign keys; CHECK and UNIQUE stay."""
    with connection.cursor() as cursor:
        cursor.execute("SET session_replication_role = replica")
        try:
            cursor.execute(query, values)
            assert cursor.rowcount
        finally:
            cursor.execute("SET session_replication_role = DEFAULT")


def claim(of: Order, kind: str) -> Refund | Dispute:
    """Create a refund or dispute of an order; no credits are taken for it yet."""
    if kind == "refund":
        return Refund.objects.create(order=of, amount_minor=1, initiated_by="staff")
    return Dispute.objects.create(
        order=of, provider_dispute_id=uuid.uuid4().hex, amount_minor=1, provider="sandbox"
    )


def claim_key(claim: Refund | Dispute) -> str:
    """Return the key of a claim's first posting, as billing.payments.reclaim makes it."""
    return f"{type(claim).__name__.lower()}:{claim.pk}"


def undo_claim(claim: Refund | Dispute) -> None:
    """Let the refund fail, or win the dispute."""
    if isinstance(claim, Refund):
        claim.status = Refund.Status.FAILED
    else:
        claim.status, claim.returned = Dispute.Status.WON, True
    claim.save()
