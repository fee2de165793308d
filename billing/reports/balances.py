"""Balances of accounts, in one query each: for the header, the pages and the low-balance mail."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from django.db.models import F
from django.utils import timezone
from django.utils.translation import gettext_lazy

from billing.ledger import signup
from billing.metering import settlement, usage
from billing.models import Account, CreditLot
from chatproject.lib import languages
from chatproject.lib.db import prepared

LOW_SHARE = 5  # a balance is low below a fifth of the last credits
TYPICAL_OF = 20  # replies whose median cost is the typical cost of a message


@dataclass(frozen=True, slots=True)
class Balance:
    """The balance of an account; amounts are micro-credits."""

    account: Account
    is_staff: bool  # of the account's user
    expiring: int  # remaining credits of the lot that expires first, at `expires_at`
    last_lot: int  # the last credits given or bought, without those taken back by a refund
    typical: int  # typical cost of a message; 0 without replies

    @property
    def available(self) -> int:
        return self.account.available

    @property
    def balance(self) -> int:
        return self.account.balance

    @property
    def held(self) -> int:
        return self.account.held

    @property
    def debt(self) -> int:
        return self.account.debt

    @property
    def is_frozen(self) -> bool:
        return self.account.status == Account.Status.FROZEN

    @property
    def expires_at(self) -> datetime | None:
        return self.account.next_expiry_at if self.expiring else None

    @property
    def expires_on(self) -> str:
        """The day on which the first credits expire: `3 Dec`, or `3 Dec 2030` in another year."""
        if self.expires_at is None:
            return ""
        day = timezone.localtime(self.expires_at)
        return languages.day(day, "j M" if day.year == timezone.localtime().year else "j M Y")

    @property
    def low(self) -> str:
        return warning_level(self.balance, self.last_lot, self.typical, is_staff=self.is_staff)


def warning_level(balance: int, last_lot: int, typical: int, *, is_staff: bool) -> str:
    """Return "empty" if a typical message is not covered, "low" if few credits are left, else ""."""
    if settlement.is_free(is_staff=is_staff):
        return ""
    # Credits held for a running reply mostly come back: they are no reason to warn.
    if balance <= 0 or balance < typical:
        return "empty"
    if balance * LOW_SHARE < last_lot:
        return "low"
    return ""


@dataclass(frozen=True, slots=True)
class Brief:
    """The part of a balance that is published after each change; amounts are micro-credits."""

    user_id: int
    balance: int
    held: int
    low: str  # a `warning_level`

    @property
    def available(self) -> int:
        return self.balance - self.held


def brief(account_id: int) -> Brief:
    """Return the balance to publish after a change. Raises Account.DoesNotExist.

    Each message calls it twice.
    """
    row = prepared.first(BRIEF, {"id": account_id, "typical_of": TYPICAL_OF})
    if row is None:
        raise Account.DoesNotExist(f"no account {account_id}")
    user_id, is_staff, balance, held, last_lot, typical = row
    low = warning_level(balance, last_lot, typical, is_staff=is_staff)
    return Brief(user_id, balance, held, low)


# The last credits and the typical cost of a reply of account `a`, in micro-credits or 0. The lots of an
# order count together, less what its refunds and disputes took back; lots past their date do not count.
LAST_LOT_AND_TYPICAL = f"""
  COALESCE((SELECT given FROM (
    SELECT lot.id, CASE WHEN lot.order_id IS NULL THEN lot.granted
      WHEN o.status = 'refunded' THEN 0
      ELSE o.credits + o.bonus + COALESCE((SELECT sum(amount) FROM billing_ledgerentry
        WHERE order_id = o.id
          AND kind IN ('refund', 'dispute', 'refund_reversal', 'dispute_won')), 0)
      END AS given
    FROM billing_creditlot lot LEFT JOIN billing_order o ON o.id = lot.order_id
    WHERE lot.account_id = a.id AND (lot.expires_at IS NULL OR lot.expires_at > now())
  ) AS lots WHERE given > 0 ORDER BY id DESC LIMIT 1), 0)::bigint,
  COALESCE((SELECT trunc(percentile_cont(0.5) WITHIN GROUP (ORDER BY charged)) FROM (
    SELECT charged FROM (
      {usage.latest_calls("a.user_id", "charged, purpose, created_at")}
    ) AS calls
    WHERE purpose = 'chat' AND charged > 0 ORDER BY created_at DESC LIMIT %(typical_of)s
  ) AS replies), 0)::bigint
FROM billing_account a JOIN accounts_user u ON u.id = a.user_id
"""  # noqa: S608 # of names alone

BRIEF = f"""
SELECT a.user_id, u.is_staff, a.balance, a.held, {LAST_LOT_AND_TYPICAL} WHERE a.id = %(id)s
"""


def of_user(user_id: int) -> Balance:
    """Return the balance of a user, opening the account if necessary. Not inside a transaction."""
    found = _read("a.user_id", user_id)
    if found is None:
        return of_account(signup.account_of(user_id).pk)
    return found


def of_account(account_id: int) -> Balance:
    """Return the balance of an account. Raises Account.DoesNotExist."""
    found = _read("a.id", account_id)
    if found is None:
        raise Account.DoesNotExist(f"no account {account_id}")
    return found


# Each page needs it: plain SQL takes a third of the ORM's time.
BALANCE = f"""
SELECT {prepared.columns(Account, "a")}, u.is_staff,
  COALESCE((SELECT remaining FROM billing_creditlot
    WHERE account_id = a.id AND remaining > 0 AND expires_at IS NOT NULL
    ORDER BY expires_at, id LIMIT 1), 0),
  {LAST_LOT_AND_TYPICAL}
"""  # noqa: S608 # of names alone


def _read(column: str, id: int) -> Balance | None:
    values = {"id": id, "typical_of": TYPICAL_OF}
    row = prepared.first(f"{BALANCE} WHERE {column} = %(id)s", values, Account)
    return Balance(*row) if row else None


@dataclass(frozen=True, slots=True)
class Lot:
    """A lot as pages show it; amounts are micro-credits."""

    title: str
    remaining: int
    granted: int
    expires_at: datetime | None


LOT_TITLES = {
    CreditLot.Kind.PAID: gettext_lazy("Bought"),
    CreditLot.Kind.BONUS: gettext_lazy("Bonus"),
    CreditLot.Kind.PROMO: gettext_lazy("Promo code"),
    CreditLot.Kind.GRANT: gettext_lazy("Given"),
}


def lots(account: Account, limit: int) -> list[Lot]:
    """Return at most `limit` lots with remaining credits, those that expire first at the front."""
    found = CreditLot.objects.filter(account=account, remaining__gt=0).order_by(
        F("expires_at").asc(nulls_last=True), "id"
    )
    return [
        Lot(str(LOT_TITLES[CreditLot.Kind(lot.kind)]), lot.remaining, lot.granted, lot.expires_at)
        for lot in found[:limit]
    ]
