"""What a run costs: a quote before it begins, a hold while it runs, a charge when it has ended.

Chat calls nothing else of billing on a message's way. A quote only reads. `hold` and `charge` write,
inside the caller's money transaction, together with the rows that they belong to.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from uuid import UUID

from django.conf import settings
from django.core.exceptions import ObjectDoesNotExist
from django.utils import timezone

from billing.ledger import postings
from billing.ledger.postings import InsufficientCredits
from billing.metering import limits, pricing, usage
from billing.metering.pricing import Tokens
from billing.models import Account, Hold, ModelPrice, UsageRecord
from chatproject.lib import db, rows

# A hold outlives the run that it is for, and whoever runs it renews it: see `keep`.
HOLD_TIME = timedelta(seconds=settings.RUN_SECONDS) + timedelta(hours=1)
# By so much less a hold still outlives a run that begins now: it need not be written at each claim.
YOUNG = timedelta(minutes=30)


class NotPriced(Exception):
    """The model has no price in force, so it is not offered."""


class BalanceChanged(InsufficientCredits):
    """The credits that the quote counted on are gone: taken meanwhile, or past their date.

    Let what is due expire (`expire_due`), and quote again.
    """

    def __init__(self, account_id: int, error: InsufficientCredits) -> None:
        self.account_id = account_id
        super().__init__(required=error.required, available=error.available)


@dataclass(frozen=True, slots=True)
class Terms:
    """What a run is made under.

    `max_tokens` is the reply's cap, `shortened` tells that the balance lowered it, `amount` what the
    run may cost at most, in micro-credits; nothing is held when that is 0. `price_id` is None where
    billing is switched off. `is_limited` tells that limits or quotas are to be looked at.
    """

    max_tokens: int
    price_id: int | None = None
    fee: int = 0
    amount: int = 0
    shortened: bool = False
    account_id: int | None = None
    is_limited: bool = False


@dataclass(frozen=True, slots=True)
class Charge:
    """What a run cost and what the user paid of it, in micro-credits."""

    cost: int
    charged: int


def quote(*, user_id: int, model: str, prompt_tokens: int, max_tokens: int, fee: int = 0) -> Terms:
    """The terms of a run whose prompt has at most so many tokens.

    The cap is lowered to what the user's credits pay for. A user without an account gets one: that
    needs a money transaction. Raises NotPriced, AccountFrozen, AccountInDebt, and
    InsufficientCredits when not even MIN_REPLY_TOKENS can be paid.
    """
    if not settings.BILLING:
        return Terms(max_tokens=max_tokens)
    price, account, is_staff, is_limited = _conditions(user_id, model)
    if price is None:
        raise NotPriced(model)
    if account is None:
        account = postings.open_account(user_id=user_id)
    if is_free(is_staff=is_staff):
        terms = Terms(max_tokens=max_tokens, price_id=price.pk, fee=fee, account_id=account.pk)
    else:
        terms = _terms(account, price, prompt_tokens, max_tokens, fee)
    return replace(terms, is_limited=is_limited)


def _conditions(user_id: int, model: str) -> tuple[ModelPrice | None, Account | None, bool, bool]:
    """The price now, the user's account, whether they are of the staff, whether anything limits them.

    In one statement of plain SQL, since it is asked with each message: see lib.rows.
    """
    values = {"user": user_id, "model": model, "at": timezone.now()}
    row = rows.first(CONDITIONS, values, ModelPrice, Account)
    if row is None:
        raise ObjectDoesNotExist(f"there is no user {user_id}")
    price, account, is_staff, is_limited = row
    return price, account, is_staff, is_limited


CONDITIONS = f"""
SELECT {rows.columns(ModelPrice, "price")}, {rows.columns(Account, "account")}, payer.is_staff,
  {limits.ANY}
FROM accounts_user AS payer LEFT JOIN billing_account AS account ON account.user_id = payer.id
LEFT JOIN LATERAL ({pricing.IN_FORCE}) AS price ON true
WHERE payer.id = %(user)s
"""  # noqa: S608 # of names alone


def is_free(*, is_staff: bool) -> bool:
    """Whether the operator pays for a user's runs: for staff, unless STAFF_PAY."""
    return is_staff and not settings.STAFF_PAY


def _terms(
    account: Account, price: ModelPrice, prompt_tokens: int, max_tokens: int, fee: int
) -> Terms:
    def most(tokens: int) -> int:
        return pricing.most(price, prompt_tokens=prompt_tokens, max_tokens=tokens, fee=fee)

    if not (amount := most(max_tokens)):
        return Terms(max_tokens=max_tokens, price_id=price.pk, account_id=account.pk)
    cap = max_tokens
    available = account.available
    if amount > available:
        cap = pricing.affordable(price, prompt_tokens=prompt_tokens, credits=available, fee=fee)
        least = min(settings.MIN_REPLY_TOKENS, max_tokens)
        postings.refuse_hold(account, most(least))
        cap = max(cap, least)
        amount = most(cap)
    else:
        postings.refuse_hold(account, amount)
    return Terms(
        max_tokens=cap,
        price_id=price.pk,
        fee=fee,
        amount=amount,
        shortened=cap < max_tokens,
        account_id=account.pk,
    )


def hold(terms: Terms, *, user_id: int, run_id: UUID, model: str, conversation: UUID) -> None:
    """Hold what a run may cost, under the run's own id; the last call before the COMMIT.

    Raises LimitReached, AccountFrozen, AccountInDebt, and BalanceChanged when a new quote could
    still find enough.
    """
    if terms.account_id is None:
        return
    if terms.is_limited:
        # Quotas and limits count messages that cost nothing too.
        limits.enforce(
            account_id=terms.account_id,
            user_id=user_id,
            model=model,
            conversation=conversation,
            amount=terms.amount,
        )
    if not terms.amount:
        return
    try:
        postings.hold(
            account_id=terms.account_id,
            amount=terms.amount,
            key=f"run:{run_id}",
            hold_id=run_id,
            price_id=terms.price_id,
            model=model,
            conversation=conversation,
            expires_at=timezone.now() + HOLD_TIME,
        )
    except InsufficientCredits as error:
        raise BalanceChanged(terms.account_id, error) from error


def expire_due(account_id: int) -> None:
    """Let credits past their date go, in a money transaction of its own."""
    db.money_transaction(postings.expire, account_id=account_id)


# Until when the hold of `run` lasts, a row of the statement that this is a part of; NULL without one.
HELD_UNTIL = "(SELECT expires_at FROM billing_hold WHERE id = run.id AND status = 'active')"


def lasts(held_until: datetime | None, now: datetime) -> bool:
    """Whether a hold lasts for as long as a run that begins now may take."""
    return held_until is not None and held_until >= now + HOLD_TIME - YOUNG


def extend(run_id: UUID, now: datetime) -> bool:
    """Keep the hold of a run for another HOLD_TIME; False when there is none any more."""
    return postings.extend(hold_id=run_id, expires_at=now + HOLD_TIME)


def expiring(run_ids: Iterable[UUID], now: datetime) -> list[UUID]:
    """Which of the runs have a hold that has outlived half of its time: those are to be kept."""
    holds = Hold.objects.filter(
        pk__in=[*run_ids], status=Hold.Status.ACTIVE, expires_at__lt=now + HOLD_TIME / 2
    )
    return list(holds.values_list("pk", flat=True))


@dataclass(frozen=True, slots=True)
class Call:
    """Whose call of a provider it was, for what, and by which price.

    `fee` is the assistant's, in micro-credits; `is_held` tells that the run has a hold. Without a
    `price` nothing is charged or recorded.
    """

    run_id: UUID
    attempt: int
    user_id: int
    price: ModelPrice | None
    fee: int
    is_held: bool
    model: str
    assistant: str
    conversation: UUID


def write_off(call: Call, *, tokens: Tokens, source: UsageRecord.Source) -> None:
    """Record what an attempt cost whose worker was lost: the operator bears it.

    The hold stays for the attempt that ends the run.
    """
    if call.price is None:
        return
    cost = pricing.cost(call.price, tokens)
    _record(call, tokens, source, cost=cost, finish=UsageRecord.Finish.CRASHED)


def charge(
    call: Call,
    *,
    tokens: Tokens | None,
    source: UsageRecord.Source,
    finish: UsageRecord.Finish,
    by: Hold.Resolver,
) -> Charge | None:
    """Settle a run's hold, if it has one, for what was delivered, and record it.

    `tokens` None: nothing was delivered. What failed on our side after its first word is charged
    only with BILL_FAILED_PARTIAL; what is not charged by intent is recorded as absorbed. None when
    there is no price to charge by.
    """
    if call.price is None:
        return None
    if tokens is None:
        if call.is_held:
            postings.release(hold_id=call.run_id, by=by)
        return Charge(cost=0, charged=0)
    cost = pricing.cost(call.price, tokens, fee=call.fee)
    charged, shortfall = 0, 0
    is_ours = finish == UsageRecord.Finish.FAILED and not settings.BILL_FAILED_PARTIAL
    if call.is_held:
        settled = postings.settle(hold_id=call.run_id, cost=0 if is_ours else cost, by=by)
        charged, shortfall = settled.charged, settled.shortfall
    _record(call, tokens, source, cost=cost, charged=charged, shortfall=shortfall, finish=finish)
    return Charge(cost=cost, charged=charged)


def _record(
    call: Call,
    tokens: Tokens,
    source: UsageRecord.Source,
    *,
    cost: int,
    charged: int = 0,
    shortfall: int = 0,
    finish: UsageRecord.Finish,
) -> None:
    """Write a call down; what was neither charged nor short is absorbed."""
    usage.record(
        run_id=call.run_id,
        attempt=call.attempt,
        user_id=call.user_id,
        model=call.model,
        assistant=call.assistant,
        conversation=call.conversation,
        hold_id=call.run_id if call.is_held else None,
        price_id=call.price.pk if call.price else None,
        tokens=tokens,
        source=source,
        cost=cost,
        charged=charged,
        shortfall=shortfall,
        absorbed=cost - charged - shortfall,
        finish=finish,
    )
