"""A model of the ledger in plain Python and in memory: one account, nothing concurrent."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field


class Refused(Exception):
    """The model refused; nothing has changed."""


@dataclass
class Lot:
    remaining: int
    is_paid: bool = False
    expires: int | None = None  # hours after the start
    priority: int = 50
    order: int | None = None


@dataclass
class ModelHold:
    amount: int
    settled: int | None = None
    shortfall: int = 0


@dataclass
class ModelAccount:
    """An account: its lots in order of creation, its holds, its entries (kind, amount)."""

    now: int = 0
    lots: list[Lot] = field(default_factory=list)
    holds: list[ModelHold] = field(default_factory=list)
    entries: list[tuple[str, int]] = field(default_factory=list)
    debt: int = 0
    is_frozen: bool = False

    @property
    def balance(self) -> int:
        return sum(lot.remaining for lot in self.lots)

    @property
    def held(self) -> int:
        return sum(hold.amount for hold in self.holds if hold.settled is None)

    @property
    def available(self) -> int:
        return self.balance - self.held

    def grant(self, kind: str, lot: Lot) -> None:
        self.lots.append(lot)
        self.entries.append((kind, lot.remaining))
        self._pay_debt()

    def hold(self, amount: int) -> None:
        after = deepcopy(self)
        after.expire()
        if self.is_frozen or self.debt or after.available < amount:
            raise Refused
        self.expire()
        self.holds.append(ModelHold(amount))

    def settle(self, number: int, cost: int) -> bool:
        hold = self.holds[number]
        if hold.settled is not None:
            return False
        hold.settled = 0
        hold.settled = charged = min(cost, self.available)
        hold.shortfall = cost - charged
        self._take("usage", charged)
        self.expire()
        self._pay_debt()
        return True

    def take(self, amount: int) -> None:
        after = deepcopy(self)
        after.expire()
        if after.available < amount:
            raise Refused
        self.expire()
        self._take("adjust_down", amount)

    def refundable(self, order: int) -> int:
        after = deepcopy(self)
        after.expire()
        unspent = sum(lot.remaining for lot in after.lots if lot.order == order)
        return min(unspent, after.available)

    def refund(self, kind: str, order: int, credits: int) -> tuple[int, int]:
        self.expire()
        taken = min(credits, self.available)
        self._take(kind, taken, order)
        self.debt += credits - taken
        return taken, credits - taken

    def give_back(self, kind: str, order: int, credits: int, debt: int) -> None:
        forgiven = min(debt, self.debt)
        self.debt -= forgiven
        if credits + debt > forgiven:
            self.grant(kind, Lot(credits + debt - forgiven, is_paid=True, order=order))

    def expire(self) -> None:
        for lot in self._in_order():
            part = min(lot.remaining, self.available)
            if self._is_past(lot) and part:
                lot.remaining -= part
                self.entries.append(("expire", -part))

    def _pay_debt(self) -> None:
        paid = min(self.debt, self.available)
        self.debt -= paid
        self._take("debt_recovery", paid)

    def _take(self, kind: str, amount: int, order: int | None = None) -> None:
        if amount:
            self.entries.append((kind, -amount))
        for lot in self._in_order(order):
            part = min(lot.remaining, amount)
            lot.remaining -= part
            amount -= part
        assert amount == 0

    def _is_past(self, lot: Lot) -> bool:
        return lot.expires is not None and lot.expires <= self.now

    def _in_order(self, order: int | None = None) -> list[Lot]:
        return sorted(
            self.lots,
            key=lambda lot: (
                order is None or lot.order != order,
                not self._is_past(lot),
                lot.priority,
                float("inf") if lot.expires is None else lot.expires,
                lot.is_paid,
            ),
        )
