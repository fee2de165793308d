"""The ledger's operations with defaults, for tests: each call is a money transaction of its own."""

from __future__ import annotations

import uuid
from datetime import timedelta

from django.contrib.auth import get_user_model
from django.utils import timezone

from billing.ledger import audit, signup
from billing.ledger import postings as postings  # tests replace it by a mutant
from billing.metering import usage
from billing.metering.pricing import Tokens
from billing.models import Account, CreditPackage, Dispute, Hold, Order, Refund, UsageRecord
from chatproject.lib.db import money_transaction


def open_account(credits: int = 0) -> Account:
    """Create a user's account with so many micro-credits."""
    user = get_user_model().objects.create_user(f"{uuid.uuid4().hex}@example.org")
    account = money_transaction(signup.open_account, user_id=user.pk)
    if credits:
        grant(account, credits)
    return account


def grant(account: Account, amount: int, **fields) -> postings.Posted:
    fields.setdefault("key", uuid.uuid4().hex)
    return money_transaction(postings.grant, account_id=account.pk, amount=amount, **fields)


def hold(account: Account, amount: int, **fields) -> Hold:
    fields.setdefault("key", uuid.uuid4().hex)
    fields.setdefault("expires_at", timezone.now() + timedelta(minutes=20))
    return money_transaction(postings.hold, account_id=account.pk, amount=amount, **fields)


def settle(held: Hold, cost: int) -> postings.Settlement:
    """Settle a hold as chat does, with its usage record in the same transaction."""
    return money_transaction(settle_and_record, held, cost)


def settle_and_record(held: Hold, cost: int) -> postings.Settlement:
    done = postings.settle(hold_id=held.pk, cost=cost)
    if done.is_new and cost:
        record(held, done)
    return done


def record(held: Hold, done: postings.Settlement) -> None:
    usage.record(
        run_id=uuid.uuid4(),
        attempt=1,
        user_id=held.account.user_id,
        model="stub-model",
        tokens=Tokens(input=10, output=5),
        source=UsageRecord.Source.PROVIDER,
        cost=done.charged + done.shortfall,
        charged=done.charged,
        shortfall=done.shortfall,
        absorbed=0,
        finish=UsageRecord.Finish.COMPLETE,
        hold_id=held.pk,
    )


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


def problems(account: Account | None = None, *, but: tuple[str, ...] = ()) -> list[str]:
    """The problems that the audit finds, as "code: message"."""
    found = audit.check(account_id=account.pk if account else None)
    return [f"{one.code}: {one.message}" for one in found if one.code not in but]


def claim(of: Order, kind: str) -> Refund | Dispute:
    """Create a refund or dispute of an order; no credits are taken for it yet."""
    if kind == "refund":
        return Refund.objects.create(order=of, amount_minor=1, initiated_by="staff")
    return Dispute.objects.create(
        order=of, provider_dispute_id=uuid.uuid4().hex, amount_minor=1, provider="sandbox"
    )


def undo_claim(claim: Refund | Dispute) -> None:
    """Let the refund fail, or win the dispute."""
    if isinstance(claim, Refund):
        claim.status = Refund.Status.FAILED
    else:
        claim.status, claim.returned = Dispute.Status.WON, True
    claim.save()
