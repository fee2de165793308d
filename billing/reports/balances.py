"""How an account stands, in one query: for the chip in the bar, the pages, and the low-balance mail."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from django.db.models import F
from django.utils import timezone

from billing.ledger import postings
from billing.metering import settlement
from billing.models import Account, CreditLot
from chatproject.lib import rows

LOW_SHARE = 5  # low below a fifth of what came in last
TYPICAL_OF = 20  # replies whose median cost is what a message costs typically


@dataclass(frozen=True, slots=True)
class Balance:
    """Amounts in micro-credits. `low` is empty, "low" or "empty" (less than a typical message)."""

    account: Account
    is_staff: bool  # whose account it is
    expiring: int  # what goes first, at `expires_at`
    last_lot: int  # how much came in last
    typical: int  # what a message costs typically; 0 when nobody knows yet

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
        """The day on which the first credits expire: `3 Dec`, with the year if it is another."""
        if self.expires_at is None:
            return ""
        day = timezone.localtime(self.expires_at)
        return f"{day:%-d %b}" if day.year == timezone.localtime().year else f"{day:%-d %b %Y}"

    @property
    def low(self) -> str:
        return _low(self.balance, self.last_lot, self.typical, is_staff=self.is_staff)


def _low(balance: int, last_lot: int, typical: int, *, is_staff: bool) -> str:
    if settlement.is_free(is_staff=is_staff):
        return ""
    # Credits that a reply under way holds mostly come back: they are no reason to warn.
    if balance <= 0 or balance < typical:
        return "empty"
    if balance * LOW_SHARE < last_lot:
        return "low"
    return ""


@dataclass(frozen=True, slots=True)
class Brief:
    """What is told of an account whenever it changed. Amounts in micro-credits; `low` as above."""

    user_id: int
    balance: int
    held: int
    low: str

    @property
    def available(self) -> int:
        return self.balance - self.held


def brief(account_id: int) -> Brief:
    """What to tell of an account that changed. Raises Account.DoesNotExist.

    It is asked twice for each message.
    """
    row = rows.first(BRIEF, {"id": account_id, "typical_of": TYPICAL_OF})
    if row is None:
        raise Account.DoesNotExist(f"no account {account_id}")
    user_id, is_staff, balance, held, last_lot, typical = row
    low = _low(balance, last_lot, typical, is_staff=is_staff)
    return Brief(user_id, balance, held, low)


# What came in last, and what a reply typically costs: of account `a`, micro-credits, 0 for nothing.
LAST_LOT_AND_TYPICAL = """
  COALESCE((SELECT granted FROM billing_creditlot
    WHERE account_id = a.id ORDER BY id DESC LIMIT 1), 0),
  COALESCE((SELECT trunc(percentile_cont(0.5) WITHIN GROUP (ORDER BY charged)) FROM (
    SELECT charged FROM billing_usagerecord
    WHERE user_id = a.user_id AND purpose = 'chat' AND charged > 0
    ORDER BY created_at DESC LIMIT %(typical_of)s
  ) AS replies), 0)::bigint
FROM billing_account a JOIN accounts_user u ON u.id = a.user_id
"""

BRIEF = f"""
SELECT a.user_id, u.is_staff, a.balance, a.held, {LAST_LOT_AND_TYPICAL} WHERE a.id = %(id)s
"""


def of_user(user_id: int) -> Balance:
    """The balance of a user, whose account is opened if need be. Not inside a transaction."""
    found = _read("a.user_id", user_id)
    if found is None:
        return of_account(postings.account_of(user_id).pk)
    return found


def of_account(account_id: int) -> Balance:
    """The balance of an account. Raises Account.DoesNotExist."""
    found = _read("a.id", account_id)
    if found is None:
        raise Account.DoesNotExist(f"no account {account_id}")
    return found


# Each page asks it: in plain SQL, which takes a third of the time.
BALANCE = f"""
SELECT {rows.columns(Account, "a")}, u.is_staff,
  COALESCE((SELECT remaining FROM billing_creditlot
    WHERE account_id = a.id AND remaining > 0 AND expires_at IS NOT NULL
    ORDER BY expires_at, id LIMIT 1), 0),
  {LAST_LOT_AND_TYPICAL}
"""  # noqa: S608 # of names alone


def _read(column: str, id: int) -> Balance | None:
    values = {"id": id, "typical_of": TYPICAL_OF}
    row = rows.first(f"{BALANCE} WHERE {column} = %(id)s", values, Account)
    return Balance(*row) if row else None


@dataclass(frozen=True, slots=True)
class Lot:
    """Credits that came in together, in words."""

    title: str
    remaining: int
    granted: int
    expires_at: datetime | None


LOT_TITLES = {
    CreditLot.Kind.PAID: "Bought",
    CreditLot.Kind.BONUS: "Bonus",
    CreditLot.Kind.PROMO: "Promo code",
    CreditLot.Kind.GRANT: "Given",
}


def lots(account: Account, most: int) -> list[Lot]:
    """What the balance is made of, at most so many lots: what expires first stands first."""
    found = CreditLot.objects.filter(account=account, remaining__gt=0).order_by(
        F("expires_at").asc(nulls_last=True), "id"
    )
    return [
        Lot(LOT_TITLES[CreditLot.Kind(lot.kind)], lot.remaining, lot.granted, lot.expires_at)
        for lot in found[:most]
    ]
