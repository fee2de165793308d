"""Random calls of the ledger, compared with the model and the whole audit after each of them."""

from __future__ import annotations

import uuid
from datetime import timedelta
from typing import Any
from unittest import mock

from django.db import connection
from django.utils import timezone
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from billing.ledger import audit
from billing.models import Hold, Order
from chatproject.lib.db import money_transaction, prepared
from tests.billing.ledger.ledger_model import Lot, ModelAccount, Refused
from tests.support import money

AMOUNTS = st.integers(1, 12) | st.integers(1, 1000)
PARTS = st.sampled_from([0, 10, 50, 100, 150, 200, 1000])  # per cent of the held amount
NUMBERS = st.integers(0, 1000)  # picks an existing row: ids would differ from run to run
HOURS = st.sampled_from([None, None, 1, 2, 3, 5])  # until credits expire
GRANTED = ["grant", "bonus", "promo"]


# The audit of one account, as a prepared statement: the whole audit would be too slow.
AUDIT = " UNION ALL ".join(
    f"SELECT '{rule.code}' WHERE EXISTS ({audit.scoped(rule.query, None, 0)})"
    for rule in audit.RULES
    if rule.code != "order_money_back"  # the machine takes credits back without money
)


STATE = """
SELECT balance, held, debt, status, next_expiry_at,
  ARRAY(SELECT remaining FROM billing_creditlot WHERE account_id = a.id ORDER BY id),
  ARRAY(SELECT kind || ' ' || amount FROM billing_ledgerentry WHERE account_id = a.id ORDER BY seq)
FROM billing_account a WHERE id = %(account)s
"""


class LedgerMachine(RuleBasedStateMachine):
    """One account per example; no table is emptied in between."""

    @initialize(lots=st.lists(st.tuples(AMOUNTS, HOURS), max_size=3))
    def begin(self, lots) -> None:
        self.began = timezone.now()
        self.clock = mock.patch.object(timezone, "now", self.now)
        self.model = ModelAccount()
        self.account = money.open_account()
        self.grants: list[dict[str, Any]] = []
        self.holds: list[Hold] = []
        self.orders: list[Order] = []
        self.refunds: list[dict[str, Any]] = []
        self.clock.start()
        for amount, hours in lots:
            self.grant(amount, "grant", hours, 50)

    def teardown(self) -> None:
        if hasattr(self, "clock"):
            self.clock.stop()

    def now(self):
        return self.began + timedelta(hours=self.model.now)

    @rule(
        amount=AMOUNTS,
        kind=st.sampled_from(GRANTED),
        hours=HOURS,
        priority=st.sampled_from([50, 50, 10]),
    )
    def grant(self, amount, kind, hours, priority):
        expires = None if hours is None else self.model.now + hours
        call = {
            "amount": amount,
            "key": uuid.uuid4().hex,
            "kind": money.postings.Kind(kind),
            "priority": priority,
            "expires_at": None if hours is None else self.now() + timedelta(hours=hours),
        }
        assert money.grant(self.account, **call).is_new
        self.grants.append(call)
        self.model.grant(kind, Lot(amount, expires=expires, priority=priority))

    @precondition(lambda self: self.grants)
    @rule(number=NUMBERS, more=st.integers(0, 1))
    def grant_again(self, number, more):
        call = self.grants[number % len(self.grants)]
        if more:
            self.refused(
                money.postings.KeyReused, money.grant, **call | {"amount": call["amount"] + 1}
            )
        else:
            assert not money.grant(self.account, **call).is_new

    @rule(amount=AMOUNTS, bonus=st.integers(0, 20))
    def buy(self, amount, bonus):
        order = len(self.orders)
        self.orders.append(money.order(self.account, amount, bonus=bonus))
        self.model.grant("purchase", Lot(amount, is_paid=True, order=order))
        if bonus:
            self.model.grant("bonus", Lot(bonus, order=order))

    @rule(part=st.sampled_from([10, 50, 90, 100, 100, 110]))
    def hold(self, part):
        amount = max(1, self.model.available * part // 100)
        call = {"amount": amount, "key": uuid.uuid4().hex}
        call["expires_at"] = self.now() + timedelta(days=1000)
        try:
            self.model.hold(amount)
        except Refused:
            error = (
                money.postings.AccountFrozen
                if self.model.is_frozen
                else money.postings.AccountInDebt
                if self.model.debt
                else money.postings.InsufficientCredits
            )
            self.refused(error, money.hold, **call)
        else:
            self.holds.append(money.hold(self.account, **call))

    @precondition(lambda self: self.holds)
    @rule(number=NUMBERS, days=st.integers(-1, 1))
    def hold_again_and_extend(self, number, days):
        number %= len(self.holds)
        held = self.holds[number]
        again = money.hold(self.account, held.amount + 1, key=held.key)
        assert (again.pk, again.amount) == (held.pk, held.amount)
        later = held.expires_at + timedelta(days=days)
        is_active = self.model.holds[number].settled is None
        assert (
            money_transaction(money.postings.extend, hold_id=held.pk, expires_at=later) == is_active
        )
        if is_active and days > 0:
            held.expires_at = later
        assert Hold.objects.get(pk=held.pk).expires_at == held.expires_at

    @precondition(lambda self: self.active())
    @rule(number=NUMBERS, part=PARTS)
    def settle(self, number, part):
        active = self.active()
        self.settle_one(active[number % len(active)], part)

    @precondition(lambda self: self.holds)
    @rule(number=NUMBERS, part=PARTS)
    def settle_any(self, number, part):
        self.settle_one(number % len(self.holds), part)

    @rule(first=st.sampled_from([30, 60, 100]), second=st.sampled_from([50, 100]), part=PARTS)
    def hold_two_and_settle_one(self, first, second, part):
        number = len(self.holds)
        self.hold(first)
        self.hold(second)
        if len(self.holds) > number:
            self.settle_one(number, part)

    def active(self):
        return [number for number, hold in enumerate(self.model.holds) if hold.settled is None]

    def settle_one(self, number, part):
        held = self.holds[number]
        cost = held.amount * part // 100
        is_new = self.model.settle(number, cost)
        done = money.settle(held, cost)
        hold = self.model.holds[number]
        assert (done.is_new, done.charged, done.shortfall) == (is_new, hold.settled, hold.shortfall)

    @rule(amount=AMOUNTS, sign=st.sampled_from([1, -1]), part=st.sampled_from([0, 50, 100, 120]))
    def adjust(self, amount, sign, part):
        amount = max(1, self.model.available * part // 100) if part else amount
        call = {"amount": sign * amount, "key": uuid.uuid4().hex}
        if sign > 0:
            self.model.grant("adjust_up", Lot(amount))
        else:
            try:
                self.model.take(amount)
            except Refused:
                self.refused(money.postings.InsufficientCredits, money.adjust, **call)
                return
        assert money.adjust(self.account, **call).is_new
        assert not money.adjust(self.account, **call).is_new

    @precondition(lambda self: self.orders)
    @rule(number=NUMBERS, part=st.integers(1, 100), kind=st.sampled_from(["refund", "dispute"]))
    def refund(self, number, part, kind):
        number %= len(self.orders)
        order = self.orders[number]
        live = [one for one in self.refunds if one["order"] == number and not one["is_undone"]]
        left = order.credits + order.bonus - sum(one["credits"] for one in live)
        if not left:
            return
        assert money.postings.refundable(order_id=order.pk) == self.model.refundable(number)
        credits = max(1, left * part // 100)
        of = money.claim(order, kind)
        key = money.claim_key(of)
        taken, owed = self.model.refund(kind, number, credits)
        call = {"credits": credits, "key": key, kind: of}
        for _ in range(2):
            done = money.refund(order, **call)
            assert (done.credits, done.debt) == (taken, owed)
        of.credits, of.debt = taken, owed
        of.save()
        self.refunds.append(
            {"kind": kind, "of": of, "order": number, "credits": credits, "is_undone": False}
            | {"key": key, "taken": taken, "owed": owed}
        )
        self.refused(money.postings.KeyReused, money.refund, order, credits=credits + 1, key=key)

    @rule(amount=AMOUNTS, earns=AMOUNTS, kind=st.sampled_from(["refund", "dispute"]))
    def spend_before_the_refund(self, amount, earns, kind):
        self.buy(amount, 0)
        self.hold(100)
        if active := self.active():
            self.settle_one(active[-1], 90)
        self.refund(len(self.orders) - 1, 100, kind)
        self.grant(earns, "grant", None, 50)

    @precondition(lambda self: self.refunds)
    @rule(number=NUMBERS)
    def give_back(self, number):
        one = self.refunds[number % len(self.refunds)]
        order, of = self.orders[one["order"]], one["of"]
        if not one["is_undone"]:
            kind = "refund_reversal" if one["kind"] == "refund" else "dispute_won"
            self.model.give_back(kind, one["order"], one["taken"], one["owed"])
            one["is_undone"] = True
            money.undo_claim(of)
        money.give_back(
            order, one["taken"], one["owed"], key=f"{one['key']}:back", **{one["kind"]: of}
        )

    @rule(hours=st.integers(0, 3))
    def time_passes(self, hours):
        self.model.now += hours

    @rule(hours=st.integers(0, 3))
    def expire(self, hours):
        self.model.now += hours
        before = self.model.balance
        self.model.expire()
        assert money.expire(self.account) == before - self.model.balance

    @rule(is_frozen=st.sampled_from([True, False, False, False]))
    def freeze(self, is_frozen):
        self.model.is_frozen = is_frozen
        status = type(self.account).Status("frozen" if is_frozen else "active")
        money_transaction(money.postings.set_status, account_id=self.account.pk, status=status)

    @invariant()
    def agrees_with_the_model(self):
        with connection.cursor() as cursor:
            cursor.execute(STATE, {"account": self.account.pk})
            [(*amounts, status, next_expiry_at, lots, entries)] = cursor.fetchall()
        model = self.model
        assert amounts == [model.balance, model.held, model.debt]
        assert status == ("frozen" if model.is_frozen else "active")
        assert lots == [lot.remaining for lot in model.lots]
        assert entries == [f"{kind} {amount}" for kind, amount in model.entries]
        due = [lot.expires for lot in model.lots if lot.remaining and lot.expires is not None]
        if due:
            assert next_expiry_at <= self.began + timedelta(hours=min(due))

    @invariant()
    def audit_finds_nothing(self):
        values = {"account": self.account.pk, "overdue": self.now() - audit.OVERDUE}
        assert prepared.all(AUDIT, values) == []

    def refused(self, error, fn, *args, **call):
        """Expect this error; the invariants check that nothing was written."""
        try:
            fn(*(args or [self.account]), **call)
        except error:
            return
        raise AssertionError(f"{error.__name__} was expected")
