"""The only writer of credits: accounts, lots, holds and the ledger.

Every function is keyword-only, must be called inside `lib.db.money_transaction`, and has one effect
however often it is called with the same key. A user's account is one row, which is locked at most
once per transaction and always before its lots; see docs/billing.md for the order of statements.

The rules, which the database checks once more at every COMMIT:

    balance = what the lots hold = balance after the last entry
    held    = sum of the active holds
    balance >= held >= 0
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import NamedTuple
from uuid import UUID

from django.conf import settings
from django.db import connection, transaction
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
from chatproject.lib import db, metrics, rows

Kind = LedgerEntry.Kind
Counter = LedgerEntry.Counter

# Where credits of each kind come from, and the lot that they become.
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
    """The account cannot cover a hold. All three are micro-credits; `available` is never negative."""

    def __init__(self, *, required: int, available: int) -> None:
        self.required = required
        self.available = available
        self.missing = required - available
        super().__init__(f"{required} required, {available} available")


class AccountFrozen(LedgerError):
    """Staff or a dispute froze the account: nothing may be held."""


class AccountInDebt(LedgerError):
    """The user took money back for credits that were spent; `debt` in micro-credits."""

    def __init__(self, debt: int) -> None:
        self.debt = debt
        super().__init__(f"{debt} owed")


class KeyReused(LedgerError):
    """The key was used before for something else."""


@dataclass(frozen=True, slots=True)
class Posted:
    """An entry of the ledger, and whether this call wrote it."""

    entry: LedgerEntry
    is_new: bool


@dataclass(frozen=True, slots=True)
class Settlement:
    """How a hold was resolved: what was charged and what could not be; `is_new` if by this call."""

    charged: int
    shortfall: int
    is_new: bool


@dataclass(frozen=True, slots=True)
class TakenBack:
    """What a refund or dispute took from the account, and what became debt as it was spent."""

    credits: int
    debt: int


def open_account(*, user_id: int) -> Account:
    """The user's account, opened with the sign-up credits if it is not there yet."""
    _insist()
    account = Account.objects.filter(user_id=user_id).first()
    if account is not None:
        return account
    is_new = _insert_account(user_id)
    account = Account.objects.get(user_id=user_id)
    if is_new and settings.SIGNUP_CREDITS > 0:
        grant(
            account_id=account.pk,
            amount=settings.SIGNUP_CREDITS,
            key=f"signup:{user_id}",
            note="Welcome",
        )
        account.refresh_from_db()
    return account


def _insert_account(user_id: int) -> bool:
    """Insert an empty account, or wait for and yield to somebody who does the same."""
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO billing_account"
            " (user_id, status, balance, held, debt, seq, created_at, updated_at)"
            " VALUES (%s, 'active', 0, 0, 0, 0, now(), now()) ON CONFLICT (user_id) DO NOTHING",
            [user_id],
        )
        return bool(cursor.rowcount)


def account_of(user_id: int) -> Account:
    """Return the account of a user, opening it if it does not exist yet.

    Accounts are opened with the user (accounts.models). This is for users created another way, such
    as a bulk import; do not call it inside a transaction in that case.
    """
    account: Account | None = Account.objects.filter(user_id=user_id).first()
    return account or db.money_transaction(open_account, user_id=user_id)


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
    """Give credits as a new lot. Debt, if there is any, is paid from it at once.

    Raises KeyReused when the key gave another amount, was of another kind or of another account,
    ValueError for an amount that is not positive.
    """
    _insist()
    if amount <= 0:
        raise ValueError("a grant is positive")
    found = _found(key, account_id, kind, amount)
    if found is not None:
        return found
    account = _lock(account_id)
    found = _found(key, account_id, kind, amount)
    if found is not None:
        return found
    counter, lot_kind = INCOMING[kind]
    lot = CreditLot.objects.create(
        account=account,
        kind=lot_kind,
        granted=amount,
        remaining=amount,
        priority=priority,
        expires_at=expires_at,
        order=order,
        paid_minor=paid_minor,
        currency=currency,
        source_key=key,
    )
    entry = _post(
        account, kind, counter, amount, key, [(lot.pk, amount)],
        order=order, refund=refund, dispute=dispute, actor_id=actor_id, note=note[:300],
    )  # fmt: skip
    if expires_at is not None:
        account.next_expiry_at = min(account.next_expiry_at or expires_at, expires_at)
    _recover_debt(account, key)
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
    """Set credits aside, under an id of the caller's if it has one.

    Make it the last call before the COMMIT: it is what others wait for.

    A second call with the same key waits for the first and then gets its hold as it is: for the
    first amount, and perhaps resolved. Raises InsufficientCredits, AccountFrozen, AccountInDebt;
    then the caller's transaction must end too.
    """
    _insist()
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
        _announce(account_id)
        return made
    # Credits that are due expire first, or the account says why not.
    account = _lock(account_id)
    _expire_due(account, now)
    refuse_hold(account, amount)
    account.held += amount
    _save(account)
    return made


def _insert_hold(made: Hold, now: datetime) -> tuple[bool, bool]:
    """Insert a hold, and take it from the account if nothing speaks against it: (is new, taken).

    One statement, so that the account's row is locked for no longer than the COMMIT needs. The
    insert goes first and waits for another one with the same key; the account is not touched then.
    """
    [(is_new, taken)] = rows.all(
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
    """Raise what speaks against holding so much: AccountFrozen, AccountInDebt, InsufficientCredits."""
    if account.status != Account.Status.ACTIVE:
        raise AccountFrozen
    if account.debt:
        raise AccountInDebt(account.debt)
    if account.available < amount:
        raise InsufficientCredits(required=amount, available=account.available)


def extend(*, hold_id: UUID, expires_at: datetime) -> bool:
    """Keep an active hold until a later time; False when it is resolved already."""
    _insist()
    found = rows.change(
        "UPDATE billing_hold SET expires_at = greatest(expires_at, %s)"
        " WHERE id = %s AND status = 'active'",
        [expires_at, hold_id],
    )
    return bool(found)


def settle(*, hold_id: UUID, cost: int, by: Hold.Resolver = Hold.Resolver.WORKER) -> Settlement:
    """Resolve a hold by charging what the work cost, once.

    Above the held amount only what is free is taken; the rest is the hold's shortfall. A cost of
    nothing releases it. A hold that is resolved already stays as it is.
    """
    _insist()
    if cost < 0:
        raise ValueError("a cost is never negative")
    row = rows.first(LOCK_HOLD, [hold_id], Hold, Account)
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
    if rows.change(RESOLVE, resolution) != 1:
        raise AssertionError(f"hold {hold_id} was resolved under our lock")
    _expire_due(account, now)
    _recover_debt(account, key)
    _save(account)
    if shortfall:
        transaction.on_commit(partial(metrics.MONEY_SHORTFALL.inc, shortfall))
    return Settlement(charged, shortfall, is_new=True)


# One statement locks the hold's row and then the account's: that order, here and everywhere.
LOCK_HOLD = f"""
SELECT {rows.columns(Hold, "hold")}, {rows.columns(Account, "account")}
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
    """A correction by staff, up or down, with who and why.

    Raises InsufficientCredits when more would be taken than is free, KeyReused, and ValueError
    without an amount or a reason.
    """
    _insist()
    if amount == 0 or not note.strip():
        raise ValueError("a correction has an amount and a reason")
    if amount > 0:
        return grant(
            account_id=account_id, amount=amount, key=key, kind=Kind.ADJUST_UP,
            actor_id=actor_id, note=note,
        )  # fmt: skip
    found = _found(key, account_id, Kind.ADJUST_DOWN, amount)
    if found is not None:
        return found
    account = _lock(account_id)
    found = _found(key, account_id, Kind.ADJUST_DOWN, amount)
    if found is not None:
        return found
    _expire_due(account, timezone.now())
    if account.available < -amount:
        raise InsufficientCredits(required=-amount, available=account.available)
    entry = _post(
        account, Kind.ADJUST_DOWN, Counter.ADJUSTMENTS, amount, key, _take(account, -amount),
        actor_id=actor_id, note=note[:300],
    )  # fmt: skip
    _save(account)
    return Posted(entry, is_new=True)


def refundable(*, order_id: UUID) -> int:
    """How many of an order's credits could be taken back now without debt, in micro-credits."""
    account = Account.objects.get(orders=order_id)
    lots = CreditLot.objects.filter(account=account, remaining__gt=0)
    past = lots.filter(expires_at__lte=timezone.now())
    # What is past its date expires before anything is taken back.
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
    """Take credits of an order back, for a refund or (with `dispute`) for a disputed charge.

    First from what is left of the order itself, then from other free credits; what is not there
    becomes the account's debt. Never touches what is held. The same key again has no effect, and
    answers with what the first call took.
    """
    _insist()
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
            order=order, refund=refund, dispute=dispute, actor_id=actor_id, note=note[:300],
        )  # fmt: skip
    _owe(account, owed, key)
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
    """Undo a `refund` that failed, or a dispute that was won: the credits return, the debt goes.

    `credits` and `debt` are what `refund` took. The same key again has no effect.
    """
    _insist()
    if credits < 0 or debt < 0:
        raise ValueError("what is given back is never negative")
    order = Order.objects.get(pk=order_id)
    account = _lock(order.account_id)
    if (
        LedgerEntry.objects.filter(idempotency_key=key).exists()
        or DebtEntry.objects.filter(idempotency_key=key).exists()
    ):
        return
    forgiven = min(debt, account.debt)
    _owe(account, -forgiven, key)
    # Debt that a later purchase has paid meanwhile comes back as credits.
    amount = credits + debt - forgiven
    if amount:
        kind = Kind.DISPUTE_WON if dispute else Kind.REFUND_REVERSAL
        counter, lot_kind = INCOMING[kind]
        lot = CreditLot.objects.create(
            account=account,
            kind=lot_kind,
            granted=amount,
            remaining=amount,
            order=order,
            source_key=key,
        )
        _post(
            account, kind, counter, amount, key, [(lot.pk, amount)],
            order=order, refund=refund, dispute=dispute, note=note[:300],
        )  # fmt: skip
        _recover_debt(account, key)
    _save(account)


def expire(*, account_id: int) -> int:
    """Take what is past its date and not needed by a hold; returns how much that was."""
    _insist()
    account = _lock(account_id)
    before = account.balance, account.next_expiry_at
    _expire_due(account, timezone.now())
    if (account.balance, account.next_expiry_at) != before:
        _save(account)
    return before[0] - account.balance


def set_status(*, account_id: int, status: Account.Status) -> None:
    """Freeze an account (it keeps its credits, but nothing new is held) or let it be used again."""
    _insist()
    _lock(account_id)
    # Nothing else of the row is written, so that an account out of balance can be frozen too.
    Account.objects.filter(pk=account_id).update(status=status, updated_at=timezone.now())
    _announce(account_id)


# --- Under the account's lock -----------------------------------------------------------------


def _insist() -> None:
    if not db.in_money_transaction():
        raise RuntimeError("the ledger is written inside lib.db.money_transaction only")


def _lock(account_id: int) -> Account:
    # No key: rows that merely name the account may be inserted by others meanwhile.
    return _remember(Account.objects.select_for_update(no_key=True).get(pk=account_id))


def _remember(account: Account) -> Account:
    account.read_seq = account.seq  # type: ignore[attr-defined] # for _save
    return account


def _found(key: str, account_id: int, kind: Kind, amount: int) -> Posted | None:
    entry = LedgerEntry.objects.filter(idempotency_key=key).first()
    if entry is None:
        return None
    if (entry.account_id, entry.kind, entry.amount) != (account_id, kind, amount):
        raise KeyReused(f"{key} was used for {entry} on account {entry.account_id}")
    return Posted(entry, is_new=False)


class Part(NamedTuple):
    """What of a lot an entry takes, or (above zero) brings. Micro-credits."""

    lot_id: int
    amount: int


class Spendable(NamedTuple):
    """A lot that is not used up."""

    lot_id: int
    remaining: int
    is_past: bool


def _spendable(account: Account, first: UUID | None = None) -> list[Spendable]:
    """Lots in the order in which they are spent. The account's lock is theirs too.

    What is past its date (kept alive by a hold) goes first, then by priority, by date of expiry,
    what was given before what was bought, the oldest first. `first` puts an order's lots in front.
    """
    found = rows.all(
        """
        SELECT id, remaining, (expires_at <= %s) IS TRUE AS is_past
        FROM billing_creditlot WHERE account_id = %s AND remaining > 0
        ORDER BY (order_id = %s::uuid) IS TRUE DESC, is_past DESC, priority,
          expires_at NULLS LAST, kind = 'paid', id
        """,
        [timezone.now(), account.pk, first],
    )
    return [Spendable(*row) for row in found]


def _take(account: Account, amount: int, first: UUID | None = None) -> list[Part]:
    """Which lots pay for an amount, and how much each."""
    parts: list[Part] = []
    missing = amount
    for lot in _spendable(account, first):
        part = min(lot.remaining, missing)
        parts.append(Part(lot.lot_id, -part))
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
    parts: Iterable[tuple[int, int]],
    *,
    hold: Hold | None = None,
    order: Order | None = None,
    refund: Refund | None = None,
    dispute: Dispute | None = None,
    actor_id: int | None = None,
    note: str = "",
) -> LedgerEntry:
    """Write one entry and what it moves of lots, in one statement.

    The account in memory follows; `_save` stores it. A lot that comes in was inserted full.
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
        note=note,
        created_at=timezone.now(),
    )
    lot_ids, amounts = zip(*parts, strict=True)
    [(entry.pk,)] = rows.all(
        """
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
        """,
        [
            account.pk, entry.seq, kind, counter, amount, entry.balance_before,
            entry.balance_after, key, entry.hold_id, entry.order_id, entry.refund_id,
            entry.dispute_id, actor_id, note, entry.created_at, list(lot_ids), list(amounts),
        ],
    )  # fmt: skip
    entry._state.adding = False
    account.balance += amount
    return entry


def _recover_debt(account: Account, key: str) -> None:
    """Pay debt from what is free: who owes has nothing free after any call of this module."""
    paid = min(account.debt, account.available)
    if paid:
        _owe(account, -paid, f"debt:{key}")
        _post(
            account, Kind.DEBT_RECOVERY, Counter.DEBT, -paid, f"debt:{key}", _take(account, paid)
        )  # fmt: skip


def _owe(account: Account, amount: int, key: str) -> None:
    """Raise (or, below zero, lower) the debt."""
    if amount:
        DebtEntry.objects.create(account=account, amount=amount, idempotency_key=key)
        account.debt += amount


def _expire_due(account: Account, now: datetime) -> None:
    """Let credits past their date go, but never those that a hold still needs."""
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
    """Store the account as it stands in memory, if it still is what `_lock` read.

    It always is under the lock: the comparison is the net below, as is the trigger at the COMMIT.
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
    if rows.change(SAVE, values) != 1:
        raise AssertionError(f"account {account.pk} changed under our lock")
    _announce(account.pk)


SAVE = """
UPDATE billing_account SET balance = %(balance)s, held = %(held)s, debt = %(debt)s, seq = %(seq)s,
  next_expiry_at = %(next_expiry_at)s, updated_at = %(now)s
WHERE id = %(id)s AND seq = %(read_seq)s
"""


def _announce(account_id: int) -> None:
    # Whoever pays for a message waits for its reply, not for this.
    db.after_commit(db.after_answer, balance_changed.send, Account, account_id=account_id)
