"""Faults before each statement, at the COMMIT and after it: a repeated call has the same effect."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from django.db import connection, transaction
from django.utils import timezone

from billing.ledger import postings
from billing.models import Account, CreditLot, DebtEntry, Hold, LedgerEntry
from chatproject.lib.db import money_transaction
from tests.support import money

pytestmark = pytest.mark.django_db(transaction=True)


class Fault(Exception):
    """The process dies here."""


class Faults:
    """Raises before the statement of a number; counts them."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.seen = 0

    def __call__(self, execute: Callable[..., Any], *rest: Any) -> Any:
        self.seen += 1
        if self.seen == self.at:
            raise Fault
        return execute(*rest)


def make_case(call: str) -> tuple[Account, Callable[[], object]]:
    """A call, and its account with lots, a hold and something due: the same each time."""
    account = money.open_account()
    order = money.order(account, 1000)
    held = money.hold(account, 500)
    now = timezone.now()
    money.grant(account, 30, expires_at=now - timedelta(seconds=1))
    own: dict[str, Any] = {"account_id": account.pk, "key": f"key of {account.pk}"}
    match call:
        case "grant":
            return account, partial(postings.grant, **own, amount=7)
        case "hold":
            later = now + timedelta(hours=1)
            return account, partial(postings.hold, **own, amount=7, expires_at=later)
        case "settle":
            return account, partial(money.settle_and_record, held, 700)
        case "adjust":
            own |= {"actor_id": account.user_id, "note": "a correction"}
            return account, partial(postings.adjust, **own, amount=-7)
    of_order = {"order_id": order.pk, "key": own["key"]}
    if call == "refund":
        return account, partial(postings.refund, **of_order, credits=900)
    money.refund(order, 900)
    owed = money.state(account)[2]
    return account, partial(postings.give_back, **of_order, credits=500, debt=owed)


CALLS = ["grant", "hold", "settle", "adjust", "refund", "give back"]


def end_state(account: Account) -> list[Any]:
    assert money.problems(account) == []
    return [
        money.state(account),
        list(CreditLot.objects.filter(account=account).order_by("id").values_list("remaining")),
        list(
            LedgerEntry.objects.filter(account=account)
            .order_by("seq")
            .values_list("seq", "kind", "amount", "balance_after")
        ),
        list(DebtEntry.objects.filter(account=account).order_by("id").values_list("amount")),
        list(
            Hold.objects.filter(account=account)
            .order_by("pk")
            .values_list("status", "settled", "shortfall")
        ),
    ]


def with_faults(fn: Callable[[], object], faults: Faults) -> None:
    with connection.execute_wrapper(faults):
        fn()
    faults(lambda: None)  # stands for the COMMIT, which no wrapper sees


@pytest.mark.parametrize("call", CALLS)
def test_fault_up_to_the_commit_leaves_no_trace(call):
    account, fn = make_case(call)
    counter = Faults(at=0)
    money_transaction(with_faults, fn, counter)
    right = end_state(account)
    assert counter.seen > 3
    for number in range(1, counter.seen + 1):
        account, fn = make_case(call)
        before = end_state(account)
        with pytest.raises(Fault):
            money_transaction(with_faults, fn, Faults(at=number))
        assert end_state(account) == before
        money_transaction(fn)
        assert end_state(account) == right


@pytest.mark.parametrize("call", CALLS)
def test_repeat_after_a_lost_commit_changes_nothing(call):
    account, fn = make_case(call)

    def fail() -> None:
        raise Fault

    def commit_and_fail() -> None:
        fn()
        transaction.on_commit(fail)

    with pytest.raises(Fault):
        money_transaction(commit_and_fail)
    done = end_state(account)
    money_transaction(fn)
    assert end_state(account) == done
