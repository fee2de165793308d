"""The only writer of credits: accounts, lots, holds and the ledger.

Every function takes keywords only, must be called inside `lib.db.money_transaction`, and is
idempotent: it has one effect however often it is called with the same key. A user's account is one
row, which is locked at most once per transaction and always before its lots; docs/billing.md states
the order of statements and of locks.

The invariants, which a deferred trigger checks again at every COMMIT:

    balance = sum of the lots' remaining credits = balance after the last entry
    held    = sum of the active holds
    balance >= held >= 0

The statements that each message needs are plain SQL: Django takes longer to build such a query than
Postgres to answer it (chatproject.lib.db.prepared).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, NamedTuple
from uuid import UUID

from django.db import transaction
from django.db.models import Sum
from django.utils import timezone

from billing.models import (
    Account,
    CreditLot,
    DebtEntry,
    Dispute,
    Hold,
    LedgerEntry,
    Order,
    Refund,
)
from billing.models.base import new_id
from billing.signals import balance_changed
from chatproject.lib import db, metrics
from chatproject.lib.db import prepared

Kind = LedgerEntry.Kind
Counter = LedgerEntry.Counter

# The counter-account that incoming credits of each kind come from, and the kind of their lot.
INCOMING: dict[str, tuple[Counter, CreditLot.Kind]] = {
    Kind.PURCHASE: (Counter.PAYMENTS, CreditLot.Kind.PAID),
    Kind.BONUS: (Counter.GRANTS, CreditLot.Kind.BONUS),
    Kind.GRANT: (Counter.GRANTS, CreditLot.Kind.GRANT),
    Kind.PROMO: (Counter.PROMO, CreditLot.Kind.PROMO),
    Kind.ADJUST_UP: (Counter.ADJUSTMENTS, CreditLot.Kind.GRANT),
    Kind.REFUND_REVERSAL: (Counter.REFUNDS, CreditLot.Kind.PAID),
    Kind.DISPUTE_WON: (Counter.DISPUTES, CreditLot.Kind.PAID),
}


class LedgerError(Exception):
    """A ledger function refused; nothing was written."""


class InsufficientCredits(LedgerError):
    """The account cannot cover an amount. All three are micro-credits; `available` is never negative."""

    def __init__(self, *, required: int, available: int) -> None:
        self.required = required
        self.available = available
        self.missing = required - available
        super().__init__(f"{required} required, {available} available")


class AccountFrozen(LedgerError):
    """The account is frozen by staff or a dispute: nothing may be held."""


class AccountInDebt(LedgerError):
    """Money was returned to the user for credits already spent; `debt` is in micro-credits."""

    def __init__(self, debt: int) -> None:
        self.debt = debt
        super().__init__(f"{debt} owed")


class KeyReused(LedgerError):
    """The key belongs to an earlier call with other arguments."""


@dataclass(frozen=True, slots=True)
class Posted:
    """A ledger entry; `is_new` if this call wrote it."""

    entry: LedgerEntry
    is_new: bool


@dataclass(frozen=True, slots=True)
class Settlement:
    """The resolution of a hold, in micro-credits; `is_new` if this call resolved it.

    `shortfall` is the part of the cost that could not be charged.
    """

    charged: int
    shortfall: int
    is_new: bool


@dataclass(frozen=True, slots=True)
class TakenBack:
    """Micro-credits taken back by a refund or dispute; the part already spent became `debt`."""

    credits: int
    debt: int


def insert_account(user_id: int) -> bool:
    """Insert an empty account for a user, with the plan of the user's row; False if the user has one."""
    _require_money_transaction()
    # A concurrent insert for the same user is waited for; then nothing is inserted here.
    return bool(
        prepared.change(
            "INSERT INTO billing_account"
            " (user_id, plan_id, status, balance, held, debt, seq, created_at, updated_at)"
            " SELECT id, plan_id, 'active', 0, 0, 0, 0, now(), now() FROM accounts_user"
            " WHERE id = %s ON CONFLICT (user_id) DO NOTHING",
            [user_id],
        )
    )


def grant(
    *,
    account_id: int,
    amount: int,
    key: str,
    kind: Kind = Kind.GRANT,
    expires_at: datetime | None = None,
    priority: int = 50,
    order: Order | None = None,
    paid_minor: int = 0,
    currency: str = "",
    refund: Refund | None = None,
    dispute: Dispute | None = None,
    actor_id: int | None = None,
    note: str = "",
) -> Posted:
    """Grant credits (micro-credits) as a new lot, and pay any debt from free credits at once.

    Raises KeyReused if the key belongs to another amount, kind or account, and ValueError for an
    amount that is not positive.
    """
    _require_money_transaction()
    if amount <= 0:
        raise ValueError("a grant is positive")
    found = _posted_before(key, account_id, kind, amount)
    if found is not None:
        return found
    account = _lock(account_id)
    found = _posted_before(key, account_id, kind, amount)
    if found is not None:
        return found
    lot = {
        "priority": priority,
        "expires_at": expires_at,
        "paid_minor": paid_minor,
        "currency": currency,
    }
    entry = _bring_in(
        account, kind, amount, key, lot,
        order=order, refund=refund, dispute=dispute, actor_id=actor_id, note=note,
    )  # fmt: skip
    if expires_at is not None:
        account.next_expiry_at = min(account.next_expiry_at or expires_at, expires_at)
    _save(account)
    return Posted(entry, is_new=True)


def hold(
    *,
    account_id: int,
    amount: int,
    key: str,
    expires_at: datetime,
    hold_id: UUID | None = None,
    price_id: int | None = None,
    model: str = "",
    conversation: UUID | None = None,
) -> Hold:
    """Hold micro-credits, under `hold_id` if the caller chose one.

    Make it the last call before the COMMIT: the account's row, which every other transaction of the
    account needs, stays locked from here on. A second call with the same key blocks until the first
    has committed and returns its hold as it is: with the first amount, possibly resolved. Raises InsufficientCredits, AccountFrozen and
    AccountInDebt, after which the caller must roll back; KeyReused for a key of another account.
    """
    _require_money_transaction()
    if amount <= 0:
        raise ValueError("a hold is positive")
    now = timezone.now()
    made = Hold(
        pk=hold_id or new_id(),
        account_id=account_id,
        key=key,
        amount=amount,
        price_id=price_id,
        model=model,
        conversation=conversation,
        expires_at=expires_at,
        created_at=now,
    )
    is_new, taken = _insert_hold(made, now)
    if not is_new:
        found = Hold.objects.get(key=key)
        if found.account_id != account_id:
            raise KeyReused(key)
        return found
    if taken:
        _notify(account_id)
        return made
    # The conditional update refused: expire the credits that are due, then hold or raise the reason.
    account = _lock(account_id)
    _expire_due(account, now)
    refuse_hold(account, amount)
    account.held += amount
    _save(account)
    return made


def _insert_hold(made: Hold, now: datetime) -> tuple[bool, bool]:
    """Insert a hold and add it to the account if it is covered; return (is new, is covered).

    One statement, so that the account's row is locked no longer than the COMMIT takes. The insert
    comes first and waits for a concurrent one with the same key; then the account stays untouched.
    """
    [(is_new, taken)] = prepared.all(
        """
        WITH made AS (
          INSERT INTO billing_hold (id, account_id, key, amount, status, shortfall, price_id,
            model, conversation, expires_at, created_at, resolved_by)
          VALUES (%(id)s, %(account)s, %(key)s, %(amount)s, 'active', 0, %(price)s,
            %(model)s, %(conversation)s, %(expires_at)s, %(now)s, '')
          ON CONFLICT (key) DO NOTHING RETURNING id
        ), taken AS (
          UPDATE billing_account SET held = held + %(amount)s, updated_at = %(now)s
          WHERE EXISTS (SELECT FROM made) AND id = %(account)s
            AND status = 'active' AND debt = 0 AND balance >= held + %(amount)s
            AND (next_expiry_at IS NULL OR next_expiry_at > %(now)s)
          RETURNING id
        )
        SELECT EXISTS (SELECT FROM made), EXISTS (SELECT FROM taken)
        """,
        {
            "id": made.pk,
            "account": made.account_id,
            "key": made.key,
            "amount": made.amount,
            "price": made.price_id,
            "model": made.model,
            "conversation": made.conversation,
            "expires_at": made.expires_at,
            "now": now,
        },
    )
    made._state.adding = False
    return is_new, taken


def refuse_hold(account: Account, amount: int) -> None:
    """Raise AccountFrozen, AccountInDebt or InsufficientCredits if the account cannot hold an amount."""
    if account.status != Account.Status.ACTIVE:
        raise AccountFrozen
    if account.debt:
        raise AccountInDebt(account.debt)
    if account.available < amount:
        raise InsufficientCredits(required=amount, available=account.available)


def extend(*, hold_id: UUID, expires_at: datetime) -> bool:
    """Extend an active hold to a later time, never to an earlier one; False if it is resolved."""
    _require_money_transaction()
    extended = prepared.change(
        "UPDATE billing_hold SET expires_at = greatest(expires_at, %s)"
        " WHERE id = %s AND status = 'active'",
        [expires_at, hold_id],
    )
    return bool(extended)


def enlarge(*, hold_id: UUID, amount: int) -> None:
    """Hold `amount` micro-credits more under an active hold: its work goes on and may cost more.

    Raises InsufficientCredits, AccountFrozen and AccountInDebt, after which the hold is as before, and
    Hold.DoesNotExist without an active one. Like `hold`, it locks the account's row.
    """
    _require_money_transaction()
    if amount <= 0:
        raise ValueError("a hold is enlarged by a positive amount")
    row = prepared.first(LOCK_HOLD, [hold_id], Hold, Account)
    if row is None or row[0].status != Hold.Status.ACTIVE:
        raise Hold.DoesNotExist(f"no active hold {hold_id}")
    account = _remember(row[1])
    _expire_due(account, timezone.now())
    refuse_hold(account, amount)
    prepared.change("UPDATE billing_hold SET amount = amount + %s WHERE id = %s", [amount, hold_id])
    account.held += amount
    _save(account)


def settle(*, hold_id: UUID, cost: int, by: Hold.Resolver = Hold.Resolver.WORKER) -> Settlement:
    """Resolve a hold exactly once, by charging the cost of the work in micro-credits.

    A cost above the held amount is covered by free credits; the rest is the hold's shortfall. A cost
    of 0 releases the hold. A hold that is already resolved stays as it is.
    """
    _require_money_transaction()
    if cost < 0:
        raise ValueError("a cost is never negative")
    row = prepared.first(LOCK_HOLD, [hold_id], Hold, Account)
    if row is None:
        raise Hold.DoesNotExist(f"no hold {hold_id}")
    found, found.account = row
    now = timezone.now()
    if found.status != Hold.Status.ACTIVE:
        return Settlement(found.settled or 0, found.shortfall, is_new=False)
    account = _remember(found.account)
    account.held -= found.amount
    charged = min(cost, account.available)
    shortfall = cost - charged
    key = f"settle:{hold_id}"
    if charged:
        _post(
            account, Kind.USAGE, Counter.REVENUE, -charged, key, _take(account, charged), hold=found
        )  # fmt: skip
    resolution = {
        "id": hold_id,
        "status": Hold.Status.SETTLED if charged else Hold.Status.RELEASED,
        "settled": charged,
        "shortfall": shortfall,
        "now": now,
        "by": by,
    }
    if prepared.change(RESOLVE, resolution) != 1:
        raise AssertionError(f"hold {hold_id} was resolved under our lock")
    _expire_due(account, now)
    _recover_debt(account, key)
    _save(account)
    if shortfall:
        transaction.on_commit(partial(metrics.MONEY_SHORTFALL.inc, shortfall))
    return Settlement(charged, shortfall, is_new=True)


# One statement locks the hold's row and then the account's: in that order here and everywhere.
LOCK_HOLD = f"""
SELECT {prepared.columns(Hold, "hold")}, {prepared.columns(Account, "account")}
FROM billing_hold AS hold JOIN billing_account AS account ON account.id = hold.account_id
WHERE hold.id = %s FOR NO KEY UPDATE OF hold, account
"""  # noqa: S608 # of names alone

RESOLVE = """
UPDATE billing_hold SET status = %(status)s, settled = %(settled)s, shortfall = %(shortfall)s,
  resolved_at = %(now)s, resolved_by = %(by)s
WHERE id = %(id)s AND status = 'active'
"""


def release(*, hold_id: UUID, by: Hold.Resolver = Hold.Resolver.WORKER) -> Settlement:
    """Resolve a hold without charging anything."""
    return settle(hold_id=hold_id, cost=0, by=by)


def adjust(*, account_id: int, amount: int, key: str, actor_id: int, note: str) -> Posted:
    """Post a correction by staff, up or down, with its author and reason.

    Raises InsufficientCredits if the account has less free credits than are to be taken, KeyReused,
    and ValueError without an amount or a reason.
    """
    _require_money_transaction()
    if amount == 0 or not note.strip():
        raise ValueError("a correction has an amount and a reason")
    if amount > 0:
        return grant(
            account_id=account_id, amount=amount, key=key, kind=Kind.ADJUST_UP,
            actor_id=actor_id, note=note,
        )  # fmt: skip
    found = _posted_before(key, account_id, Kind.ADJUST_DOWN, amount)
    if found is not None:
        return found
    account = _lock(account_id)
    found = _posted_before(key, account_id, Kind.ADJUST_DOWN, amount)
    if found is not None:
        return found
    _expire_due(account, timezone.now())
    if account.available < -amount:
        raise InsufficientCredits(required=-amount, available=account.available)
    entry = _post(
        account, Kind.ADJUST_DOWN, Counter.ADJUSTMENTS, amount, key, _take(account, -amount),
        actor_id=actor_id, note=note,
    )  # fmt: skip
    _save(account)
    return Posted(entry, is_new=True)


def refundable(*, order_id: UUID) -> int:
    """Return how many of an order's micro-credits could be taken back now without debt."""
    account = Account.objects.get(orders=order_id)
    lots = CreditLot.objects.filter(account=account, remaining__gt=0)
    past = lots.filter(expires_at__lte=timezone.now())
    # Lots past their date expire before anything is taken back.
    free = account.available - (past.aggregate(sum=Sum("remaining"))["sum"] or 0)
    unspent = lots.filter(order=order_id).difference(past)
    return max(0, min(sum(lot.remaining for lot in unspent), free))


def refund(
    *,
    order_id: UUID,
    credits: int,
    key: str,
    refund: Refund | None = None,
    dispute: Dispute | None = None,
    actor_id: int | None = None,
    note: str = "",
) -> TakenBack:
    """Take micro-credits of an order back, for a refund or (with `dispute`) for a disputed charge.

    The order's own lots come first, then other free credits; the rest becomes the account's debt.
    Held credits are never touched. A repeated key has no effect and returns the first result; it
    raises KeyReused for another order or amount.
    """
    _require_money_transaction()
    if credits <= 0:
        raise ValueError("a refund is positive")
    order = Order.objects.get(pk=order_id)
    account = _lock(order.account_id)
    done = _taken_back(key, order, credits)
    if done is not None:
        return done
    now = timezone.now()
    _expire_due(account, now)
    taken = min(credits, account.available)
    owed = credits - taken
    kind, counter = (Kind.DISPUTE, Counter.DISPUTES) if dispute else (Kind.REFUND, Counter.REFUNDS)
    if taken:
        _post(
            account, kind, counter, -taken, key, _take(account, taken, first=order_id),
            order=order, refund=refund, dispute=dispute, actor_id=actor_id, note=note,
        )  # fmt: skip
    _change_debt(account, owed, key)
    _save(account)
    return TakenBack(taken, owed)


def _taken_back(key: str, order: Order, credits: int) -> TakenBack | None:
    entry = LedgerEntry.objects.filter(idempotency_key=key).first()
    owed = DebtEntry.objects.filter(idempotency_key=key).first()
    if entry is None and owed is None:
        return None
    done = TakenBack(-entry.amount if entry else 0, owed.amount if owed else 0)
    of_another = (entry is not None and entry.order_id != order.pk) or (
        owed is not None and owed.account_id != order.account_id
    )
    if of_another or done.credits + done.debt != credits:
        raise KeyReused(f"{key} was used for {done.credits + done.debt} credits")
    return done


def give_back(
    *,
    order_id: UUID,
    credits: int,
    debt: int,
    key: str,
    refund: Refund | None = None,
    dispute: Dispute | None = None,
    note: str = "",
) -> None:
    """Reverse a `refund` that failed or a dispute that was won: credits return, debt is cancelled.

    `credits` and `debt` are amounts that `refund` returned, or parts of them. The credits keep the
    date of the order's own, while it has not passed. A repeated key has no effect.
    """
    _require_money_transaction()
    if credits < 0 or debt < 0:
        raise ValueError("amounts given back are never negative")
    order = Order.objects.get(pk=order_id)
    account = _lock(order.account_id)
    if (
        LedgerEntry.objects.filter(idempotency_key=key).exists()
        or DebtEntry.objects.filter(idempotency_key=key).exists()
    ):
        return
    forgiven = min(debt, account.debt)
    _change_debt(account, -forgiven, key)
    # Debt that a later purchase has paid meanwhile comes back as credits.
    amount = credits + debt - forgiven
    if amount:
        kind = Kind.DISPUTE_WON if dispute else Kind.REFUND_REVERSAL
        bought = CreditLot.objects.filter(
            source_key=f"purchase:{order_id}", expires_at__gt=timezone.now()
        ).first()
        expires_at = bought.expires_at if bought else None
        _bring_in(
            account, kind, amount, key, {"expires_at": expires_at},
            order=order, refund=refund, dispute=dispute, note=note,
        )  # fmt: skip
        if expires_at is not None:
            account.next_expiry_at = min(account.next_expiry_at or expires_at, expires_at)
    _save(account)


def expire(*, account_id: int) -> int:
    """Expire micro-credits past their date that no hold needs; return how many."""
    _require_money_transaction()
    account = _lock(account_id)
    before = account.balance, account.next_expiry_at
    _expire_due(account, timezone.now())
    if (account.balance, account.next_expiry_at) != before:
        _save(account)
    return before[0] - account.balance


def forfeit(*, account_id: int) -> int:
    """Expire all micro-credits that no hold needs, whatever their date; return how many.

    For an account whose owner has left. A second call finds none.
    """
    _require_money_transaction()
    account = _lock(account_id)
    before = account.balance
    for lot in _spendable(account):
        amount = min(lot.remaining, account.available)
        if amount:
            _post(
                account, Kind.EXPIRE, Counter.BREAKAGE, -amount,
                f"expire:{lot.lot_id}:{account.seq + 1}", [(lot.lot_id, -amount)],
            )  # fmt: skip
    if account.balance != before:
        account.next_expiry_at = None
        _save(account)
    return before - account.balance


def set_status(*, account_id: int, status: Account.Status) -> None:
    """Freeze an account (it keeps its credits, but nothing new is held) or activate it again."""
    _require_money_transaction()
    _lock(account_id)
    # No other column is written, so that an account out of balance can be frozen too.
    Account.objects.filter(pk=account_id).update(status=status, updated_at=timezone.now())
    _notify(account_id)


# --- Under the account's lock -----------------------------------------------------------------


def _require_money_transaction() -> None:
    if not db.in_money_transaction():
        raise RuntimeError("the ledger is written inside lib.db.money_transaction only")


def _lock(account_id: int) -> Account:
    # NO KEY UPDATE: rows that merely reference the account may be inserted meanwhile.
    return _remember(Account.objects.select_for_update(no_key=True).get(pk=account_id))


def _remember(account: Account) -> Account:
    account.read_seq = account.seq  # type: ignore[attr-defined] # for _save
    return account


def _posted_before(key: str, account_id: int, kind: Kind, amount: int) -> Posted | None:
    entry = LedgerEntry.objects.filter(idempotency_key=key).first()
    if entry is None:
        return None
    if (entry.account_id, entry.kind, entry.amount) != (account_id, kind, amount):
        raise KeyReused(f"{key} was used for {entry} on account {entry.account_id}")
    return Posted(entry, is_new=False)


def _bring_in(
    account: Account, kind: Kind, amount: int, key: str, lot: dict[str, Any], **references: Any
) -> LedgerEntry:
    """Write incoming credits as a new lot with its entry, then pay debt from free credits.

    `lot` has further columns of the lot, `references` further columns of the entry.
    """
    counter, lot_kind = INCOMING[kind]
    made = CreditLot.objects.create(
        account=account,
        kind=lot_kind,
        granted=amount,
        remaining=amount,
        order=references["order"],
        source_key=key,
        **lot,
    )
    entry = _post(account, kind, counter, amount, key, [(made.pk, amount)], **references)
    _recover_debt(account, key)
    return entry


class Spendable(NamedTuple):
    """A lot with remaining credits; `is_past` if it is past its date."""

    lot_id: int
    remaining: int
    is_past: bool


def _spendable(account: Account, first: UUID | None = None) -> list[Spendable]:
    """Return lots in spend order. The account's lock protects them too.

    Lots past their date (kept alive by a hold) come first; the others follow by priority, by date of
    expiry, given before bought, oldest first. `first` moves an order's lots to the front.
    """
    found = prepared.all(
        """
        SELECT id, remaining, (expires_at <= %s) IS TRUE AS is_past
        FROM billing_creditlot WHERE account_id = %s AND remaining > 0
        ORDER BY (order_id = %s::uuid) IS TRUE DESC, is_past DESC, priority,
          expires_at NULLS LAST, kind = 'paid', id
        """,
        [timezone.now(), account.pk, first],
    )
    return [Spendable(*row) for row in found]


def _take(account: Account, amount: int, first: UUID | None = None) -> list[tuple[int, int]]:
    """Split an amount over lots in spend order: pairs of a lot's id and its negative share."""
    parts: list[tuple[int, int]] = []
    missing = amount
    for lot in _spendable(account, first):
        part = min(lot.remaining, missing)
        parts.append((lot.lot_id, -part))
        missing -= part
        if not missing:
            return parts
    raise AssertionError(f"account {account.pk} has no lots for {missing} of {amount}")


def _post(
    account: Account,
    kind: Kind,
    counter: Counter,
    amount: int,
    key: str,
    parts: Sequence[tuple[int, int]],
    *,
    hold: Hold | None = None,
    order: Order | None = None,
    refund: Refund | None = None,
    dispute: Dispute | None = None,
    actor_id: int | None = None,
    note: str = "",
) -> LedgerEntry:
    """Write one entry and its lot moves in one statement; `parts` pairs lots' ids with amounts.

    The account is updated in memory, and stored by `_save`. An incoming lot was inserted full.
    """
    account.seq += 1
    entry = LedgerEntry(
        account=account,
        seq=account.seq,
        kind=kind,
        counter_account=counter,
        amount=amount,
        balance_before=account.balance,
        balance_after=account.balance + amount,
        idempotency_key=key,
        hold=hold,
        order=order,
        refund=refund,
        dispute=dispute,
        actor_id=actor_id,
        note=note[:300],
        created_at=timezone.now(),
    )
    values = [
        account.pk, entry.seq, kind, counter, amount, entry.balance_before, entry.balance_after,
        key, entry.hold_id, entry.order_id, entry.refund_id, entry.dispute_id, actor_id,
        entry.note, entry.created_at, [lot_id for lot_id, _ in parts], [part for _, part in parts],
    ]  # fmt: skip
    [(entry.pk,)] = prepared.all(INSERT_ENTRY, values)
    entry._state.adding = False
    account.balance += amount
    return entry


INSERT_ENTRY = """
WITH entry AS (
  INSERT INTO billing_ledgerentry (account_id, seq, kind, counter_account, amount,
    balance_before, balance_after, idempotency_key, hold_id, order_id, refund_id,
    dispute_id, actor_id, note, created_at)
  VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s) RETURNING id
), part AS (
  SELECT * FROM unnest(%s::bigint[], %s::bigint[]) AS part (lot_id, amount)
), lot AS (
  UPDATE billing_creditlot SET remaining = remaining + part.amount
  FROM part WHERE id = part.lot_id AND part.amount < 0
), move AS (
  INSERT INTO billing_lotmove (entry_id, lot_id, amount)
  SELECT entry.id, part.lot_id, part.amount FROM entry, part
)
SELECT id FROM entry
"""


def _recover_debt(account: Account, key: str) -> None:
    """Pay debt from free credits: after any call of this module an account in debt has none."""
    paid = min(account.debt, account.available)
    if paid:
        _change_debt(account, -paid, f"debt:{key}")
        _post(
            account, Kind.DEBT_RECOVERY, Counter.DEBT, -paid, f"debt:{key}", _take(account, paid)
        )  # fmt: skip


def _change_debt(account: Account, amount: int, key: str) -> None:
    """Raise the debt, or lower it by a negative amount."""
    if amount:
        DebtEntry.objects.create(account=account, amount=amount, idempotency_key=key)
        account.debt += amount


def _expire_due(account: Account, now: datetime) -> None:
    """Expire credits past their date, but never those that a hold still needs."""
    if account.next_expiry_at is None or account.next_expiry_at > now:
        return
    for lot in _spendable(account):
        amount = min(lot.remaining, account.available) if lot.is_past else 0
        if amount:
            _post(
                account, Kind.EXPIRE, Counter.BREAKAGE, -amount,
                f"expire:{lot.lot_id}:{account.seq + 1}", [(lot.lot_id, -amount)],
            )  # fmt: skip
    account.next_expiry_at = (
        CreditLot.objects.filter(account=account, remaining__gt=0, expires_at__isnull=False)
        .order_by("expires_at")
        .values_list("expires_at", flat=True)
        .first()
    )


def _save(account: Account) -> None:
    """Store the account in memory by compare-and-set on the `seq` that `_lock` read.

    Under the lock the comparison always holds: like the trigger at the COMMIT, it is a second line
    of defence.
    """
    values = {
        "id": account.pk,
        "read_seq": account.read_seq,  # type: ignore[attr-defined] # set by _lock
        "balance": account.balance,
        "held": account.held,
        "debt": account.debt,
        "seq": account.seq,
        "next_expiry_at": account.next_expiry_at,
        "now": timezone.now(),
    }
    if prepared.change(SAVE, values) != 1:
        raise AssertionError(f"account {account.pk} changed under our lock")
    _notify(account.pk)


SAVE = """
UPDATE billing_account SET balance = %(balance)s, held = %(held)s, debt = %(debt)s, seq = %(seq)s,
  next_expiry_at = %(next_expiry_at)s, updated_at = %(now)s
WHERE id = %(id)s AND seq = %(read_seq)s
"""


def _notify(account_id: int) -> None:
    # A moment after the response: the sender of a message waits for its reply, not for receivers.
    db.after_commit(db.after_response, balance_changed.send_robust, Account, account_id=account_id)
