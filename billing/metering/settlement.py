"""The money of a run: a quote before it begins, a hold while it runs, a charge when it has ended.

A quote only reads. `hold` and `charge` write inside the caller's money transaction, together with the
rows that they belong to. Chat imports nothing of the ledger: its refusals and `account_of` are
offered here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from uuid import UUID

from django.conf import settings
from django.core.exceptions import ObjectDoesNotExist
from django.db.models import Sum
from django.utils import timezone
from django.utils.translation import gettext as _

from billing.ledger import postings, signup
from billing.ledger.postings import AccountFrozen as AccountFrozen
from billing.ledger.postings import AccountInDebt as AccountInDebt
from billing.ledger.postings import InsufficientCredits as InsufficientCredits
from billing.ledger.signup import account_of as account_of
from billing.metering import limits, pricing, usage
from billing.metering.pricing import Tokens
from billing.models import Account, Hold, ModelPrice, UsageRecord
from billing.models.usage import Purpose
from chatproject.lib import db
from chatproject.lib.db import prepared

# A hold outlives its run; `extend` renews it while the run is queued and when it is claimed.
HOLD_TIME = timedelta(seconds=settings.RUN_SECONDS) + timedelta(hours=1)
# A hold with this much less left still outlives a run that begins now, so that most claims need not
# write it.
SPARE_TIME = timedelta(minutes=30)


class NotPriced(Exception):
    """The model has no price in force and is not offered."""


class BalanceChanged(InsufficientCredits):
    """Credits that the quote counted on were spent meanwhile or are past their date.

    Call `expire_due`, then quote again.
    """

    def __init__(self, account_id: int, error: InsufficientCredits) -> None:
        self.account_id = account_id
        super().__init__(required=error.required, available=error.available)


@dataclass(frozen=True, slots=True)
class Quote:
    """The quote of a run: its price, the cap of its reply and the most that it may cost.

    `max_tokens` is the cap, `shortened` if the balance lowered it. `amount` is the maximum cost in
    micro-credits; nothing is held for 0. `price_id` is None where billing is switched off.
    `is_limited` if limits or quotas must be enforced.
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
    """The cost of a run, and the part that the user paid, in micro-credits."""

    cost: int
    charged: int


def quote(
    *,
    user_id: int,
    model: str,
    prompt_tokens: int,
    max_tokens: int,
    fee: int = 0,
    reserved: int = 0,
    parts: int = 1,
) -> Quote:
    """Quote a run whose prompt has at most `prompt_tokens` tokens.

    The cap is lowered to fit the user's credits; of these, `reserved` micro-credits belong to other
    runs that begin with this one, and of the rest it may use one of `parts`. A user without an account gets one, which needs a
    money transaction. Raises NotPriced, AccountFrozen, AccountInDebt, and InsufficientCredits
    if not even MIN_REPLY_TOKENS are covered.
    """
    if not settings.BILLING:
        return Quote(max_tokens=max_tokens)
    values = {"user": user_id, "model": model, "at": timezone.now()}
    row = prepared.first(CONDITIONS, values, ModelPrice, Account)
    if row is None:
        raise ObjectDoesNotExist(_("there is no user %(user_id)s") % {"user_id": user_id})
    price, account, is_staff, is_limited = row
    if price is None:
        raise NotPriced(model)
    if account is None:
        account = signup.open_account(user_id=user_id)
    if parts > 1 or reserved:
        # In this object alone; each hold is checked against the row.
        left = max(0, account.available - reserved)
        account.held = account.balance - left // parts
    if is_free(is_staff=is_staff):
        quoted = Quote(max_tokens=max_tokens, price_id=price.pk, fee=fee, account_id=account.pk)
    else:
        quoted = _quote_for_payer(account, price, prompt_tokens, max_tokens, fee)
    return replace(quoted, is_limited=is_limited)


@dataclass(frozen=True, slots=True)
class Wanted:
    """A possible run: its price, the tokens of its prompt at most, the cap of its reply, the fee."""

    price: ModelPrice
    prompt_tokens: int
    max_tokens: int
    fee: int = 0


def quote_each(*, user_id: int, wanted: Mapping[int, Wanted]) -> dict[int, Quote | Exception]:
    """Quote several possible runs of a user who pays, with one read of the account.

    A run that would be refused has the refusal instead: AccountFrozen, AccountInDebt or
    InsufficientCredits.
    """
    account = account_of(user_id)
    quoted: dict[int, Quote | Exception] = {}
    for key, run in wanted.items():
        try:
            quoted[key] = _quote_for_payer(
                account, run.price, run.prompt_tokens, run.max_tokens, run.fee
            )
        except (InsufficientCredits, AccountFrozen, AccountInDebt) as refusal:
            quoted[key] = refusal
    return quoted


# The price now, the user's account, whether the user is staff and whether any limit applies. One
# statement of plain SQL, since each message needs it: see lib.db.prepared.
CONDITIONS = f"""
SELECT {prepared.columns(ModelPrice, "price")}, {prepared.columns(Account, "account")}, payer.is_staff,
  {limits.ANY}
FROM accounts_user AS payer LEFT JOIN billing_account AS account ON account.user_id = payer.id
LEFT JOIN LATERAL ({pricing.IN_FORCE}) AS price ON true
WHERE payer.id = %(user)s
"""  # noqa: S608 # of names alone


def is_free(*, is_staff: bool) -> bool:
    """Return whether the operator pays for a user's runs: for staff, unless STAFF_PAY."""
    return is_staff and not settings.STAFF_PAY


def _quote_for_payer(
    account: Account, price: ModelPrice, prompt_tokens: int, max_tokens: int, fee: int
) -> Quote:
    """Return the quote for a user who pays: the reply's cap fits the available credits."""
    max_cost = partial(pricing.max_cost, price, prompt_tokens=prompt_tokens, fee=fee)
    if not (amount := max_cost(max_tokens=max_tokens)):
        return Quote(max_tokens=max_tokens, price_id=price.pk, account_id=account.pk)
    cap = max_tokens
    available = account.available
    if amount > available:
        cap = pricing.affordable(price, prompt_tokens=prompt_tokens, credits=available, fee=fee)
        min_tokens = min(settings.MIN_REPLY_TOKENS, max_tokens)
        postings.refuse_hold(account, max_cost(max_tokens=min_tokens))
        cap = max(cap, min_tokens)
        amount = max_cost(max_tokens=cap)
    else:
        postings.refuse_hold(account, amount)
    return Quote(
        max_tokens=cap,
        price_id=price.pk,
        fee=fee,
        amount=amount,
        shortened=cap < max_tokens,
        account_id=account.pk,
    )


def hold(
    quoted: Quote,
    *,
    user_id: int,
    run_id: UUID,
    model: str,
    conversation: UUID | None,
    count_unheld: limits.CountUnheld | None,
    key: str = "",
    time: timedelta = HOLD_TIME,
) -> None:
    """Hold a run's maximum cost under the run's own id; the last call before the COMMIT.

    `count_unheld` counts the user's other active runs that hold nothing, for a quota of messages; None for a
    call that is no message, which has a `key` and a shorter `time` of its own.
    Raises LimitReached, AccountFrozen, AccountInDebt, and BalanceChanged if a new quote may still
    succeed.
    """
    if quoted.account_id is None:
        return
    if quoted.is_limited:
        # Quotas and limits also apply to messages that cost nothing.
        limits.enforce(
            account_id=quoted.account_id,
            user_id=user_id,
            model=model,
            conversation=conversation,
            amount=quoted.amount,
            count_unheld=count_unheld,
        )
    if not quoted.amount:
        return
    try:
        postings.hold(
            account_id=quoted.account_id,
            amount=quoted.amount,
            key=key or f"run:{run_id}",
            hold_id=run_id,
            price_id=quoted.price_id,
            model=model,
            conversation=conversation,
            expires_at=timezone.now() + time,
        )
    except InsufficientCredits as error:
        raise BalanceChanged(quoted.account_id, error) from error


def expire_due(account_id: int) -> None:
    """Expire an account's credits past their date, in a money transaction of its own."""
    db.money_transaction(postings.expire, account_id=account_id)


# Whether the hold of `run`, a row of the enclosing statement, outlives the time `covered_until`, or the
# run needs none. Takes that time as its parameter.
COVERED = (
    "(run.most = 0 OR EXISTS (SELECT FROM billing_hold AS held WHERE held.id = run.id"
    " AND held.status = 'active' AND held.expires_at >= %s))"
)


def covered_until(now: datetime) -> datetime:
    """Return the time that the hold of a run which begins now has to last."""
    return now + HOLD_TIME - SPARE_TIME


def extend(run_id: UUID, now: datetime) -> bool:
    """Extend a run's hold to HOLD_TIME from now; False if it has no active hold."""
    return postings.extend(hold_id=run_id, expires_at=now + HOLD_TIME)


def enlarge(call: Call, *, amount: int, held: int) -> None:
    """Hold more for a run that goes on, by `amount` micro-credits.

    `held` is what it holds: a run without a hold gets one, unless the operator pays for its user. Credits that
    do not cover `amount` raise InsufficientCredits, AccountFrozen or AccountInDebt, and a spending limit raises
    LimitReached: the hold is then as before.
    """
    account = account_of(call.user_id)
    limits.enforce(
        account_id=account.pk,
        user_id=call.user_id,
        model=call.model,
        conversation=call.conversation,
        amount=amount,
        count_unheld=None,
    )
    if held:
        postings.enlarge(hold_id=call.run_id, amount=amount)
    else:
        postings.hold(
            account_id=account.pk,
            amount=amount,
            key=f"run:{call.run_id}",
            hold_id=call.run_id,
            price_id=call.price.pk if call.price else None,
            model=call.model,
            conversation=call.conversation,
            expires_at=timezone.now() + HOLD_TIME,
        )


def held_under(user_id: int, prefix: str) -> int:
    """Return the micro-credits of a user's active holds whose keys begin with a prefix."""
    active = Hold.objects.filter(account__user=user_id, status=Hold.Status.ACTIVE)
    return int(
        active.filter(key__startswith=prefix).aggregate(Sum("amount", default=0))["amount__sum"]
    )


def expiring(run_ids: Iterable[UUID], now: datetime) -> list[UUID]:
    """Return the runs whose hold has used up half of its time and must be extended."""
    holds = Hold.objects.filter(
        pk__in=[*run_ids], status=Hold.Status.ACTIVE, expires_at__lt=now + HOLD_TIME / 2
    )
    return list(holds.values_list("pk", flat=True))


@dataclass(frozen=True, slots=True)
class Call:
    """One billable provider call: user, conversation, model and price.

    `fee` is the assistant's, in micro-credits; `is_held` if the run has a hold. Without a `price`
    nothing is charged or recorded. `most` limits the charge, for a reply of another model than was
    quoted; the rest of its cost is absorbed. `api_key` is the id of the API key that asked.
    """

    run_id: UUID
    attempt: int
    user_id: int
    price: ModelPrice | None
    fee: int
    is_held: bool
    model: str
    assistant: str
    conversation: UUID | None
    most: int | None = None
    api_key: int | None = None
    purpose: Purpose = Purpose.CHAT


def write_off(
    call: Call,
    *,
    tokens: Tokens,
    source: UsageRecord.Source,
    finish: UsageRecord.Finish = UsageRecord.Finish.CRASHED,
) -> Charge:
    """Record the cost of a call at the operator's expense: a lost attempt, or an EMPTY reply.

    No fee is part of it, since the provider does not ask for one. The hold is not touched.
    """
    if call.price is None:
        return Charge(cost=0, charged=0)
    cost = pricing.cost(call.price, tokens)
    _record(call, tokens, source, cost=cost, finish=finish)
    return Charge(cost=cost, charged=0)


@dataclass(frozen=True, slots=True)
class Step:
    """A finished step of a run, before the call that ends it: a provider's call, or a tool's with its `fee`.

    `number` and `attempt` name it within the run; `fee` is in micro-credits.
    """

    number: int
    attempt: int
    model: str
    tokens: Tokens | None = None
    source: UsageRecord.Source = UsageRecord.Source.PROVIDER
    fee: int = 0

    def cost(self, price: ModelPrice) -> int:
        return (pricing.cost(price, self.tokens) if self.tokens else 0) + self.fee


def charge(
    call: Call,
    *,
    tokens: Tokens | None,
    source: UsageRecord.Source,
    finish: UsageRecord.Finish,
    by: Hold.Resolver,
    steps: Sequence[Step] = (),
) -> Charge | None:
    """Settle a run's hold, if it has one, for the tokens of its call, and record the call.

    With `tokens` None no provider accepted a request, and the hold is released. With `finish` EMPTY
    the model said nothing: the hold is released, and the cost is recorded as absorbed. A run that
    failed after its first word is charged only with BILL_FAILED_PARTIAL; otherwise its cost is
    absorbed too. docs/billing.md has the table. The finished `steps` of a run with tools are charged with its
    last call, each with a record. Returns None without a price to charge by.
    """
    if call.price is None:
        return None
    if steps:
        return _charge_steps(call, steps, tokens, source, finish, by)
    if tokens is None or finish == UsageRecord.Finish.EMPTY:
        if call.is_held:
            postings.release(hold_id=call.run_id, by=by)
        if tokens is None:
            return Charge(cost=0, charged=0)
        return write_off(call, tokens=tokens, source=source, finish=finish)
    cost = pricing.cost(call.price, tokens, fee=call.fee)
    charged, shortfall = _settle(call, cost, finish, by)
    _record(call, tokens, source, cost=cost, charged=charged, shortfall=shortfall, finish=finish)
    return Charge(cost=cost, charged=charged)


def _settle(
    call: Call, cost: int, finish: UsageRecord.Finish, by: Hold.Resolver
) -> tuple[int, int]:
    """Settle a run's hold, if it has one; return what was charged and what is short."""
    if not call.is_held:
        return 0, 0
    is_ours = finish == UsageRecord.Finish.FAILED and not settings.BILL_FAILED_PARTIAL
    payable = 0 if is_ours else cost if call.most is None else min(cost, call.most)
    settled = postings.settle(hold_id=call.run_id, cost=payable, by=by)
    return settled.charged, settled.shortfall


def _charge_steps(
    call: Call,
    steps: Sequence[Step],
    tokens: Tokens | None,
    source: UsageRecord.Source,
    finish: UsageRecord.Finish,
    by: Hold.Resolver,
) -> Charge:
    """Settle a run with finished steps: one entry for all of them, and a record of each."""
    assert call.price is not None
    complete = UsageRecord.Finish.COMPLETE
    # The assistant's fee is part of the last record.
    calls: list[tuple[Call, int, Tokens, UsageRecord.Source, UsageRecord.Finish, int]] = [
        (
            replace(
                call,
                attempt=one.attempt,
                model=one.model,
                purpose=call.purpose if one.tokens else Purpose.TOOL,
            ),
            one.number,
            one.tokens or Tokens(input=0),
            one.source,
            finish if finish == UsageRecord.Finish.EMPTY else complete,
            one.cost(call.price),
        )
        for one in steps
        if one.tokens or one.fee
    ]
    is_empty = finish == UsageRecord.Finish.EMPTY
    fee = 0 if is_empty else call.fee
    if tokens is not None:
        cost = pricing.cost(call.price, tokens, fee=fee)
        calls.append((call, 0, tokens, source, finish, cost))
    elif fee and calls:
        calls[-1] = (*calls[-1][:-1], calls[-1][-1] + fee)
    total = sum(one[-1] for one in calls)
    if is_empty:
        charged = shortfall = 0
        if call.is_held:
            postings.release(hold_id=call.run_id, by=by)
    else:
        charged, shortfall = _settle(call, total, finish, by)
    left, short = charged, shortfall
    for made, number, used, of, ended, cost in calls:
        paid = min(cost, left)
        missing = min(cost - paid, short)
        left, short = left - paid, short - missing
        _record(
            made, used, of, cost=cost, charged=paid, shortfall=missing, finish=ended, step=number
        )
    return Charge(cost=total, charged=charged)


def _record(
    call: Call,
    tokens: Tokens,
    source: UsageRecord.Source,
    *,
    cost: int,
    charged: int = 0,
    shortfall: int = 0,
    finish: UsageRecord.Finish,
    step: int = 0,
) -> None:
    """Write a call's usage record; the cost neither charged nor short is absorbed."""
    usage.record(
        run_id=call.run_id,
        attempt=call.attempt,
        step=step,
        user_id=call.user_id,
        model=call.model,
        assistant=call.assistant,
        conversation=call.conversation,
        api_key=call.api_key,
        purpose=call.purpose,
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
