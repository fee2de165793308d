"""A fault before each statement, at the COMMIT and after it: called again, nothing is different."""

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


def lived_in() -> tuple[Account, dict[str, Any]]:
    """An account with lots, debt to come, and something due, the same each time."""
    account = money.open_account()
    order = money.order(account, 1000)
    held = money.hold(account, 500)
    money.grant(account, 30, expires_at=timezone.now() - timedelta(seconds=1))
    return account, {"account": account, "order": order, "held": held}


def granting(account: Account, **_: object) -> Callable[[], object]:
    return partial(postings.grant, account_id=account.pk, amount=7, key=f"g{account.pk}")


def holding(account: Account, **_: object) -> Callable[[], object]:
    later = timezone.now() + timedelta(hours=1)
    return partial(
        postings.hold, account_id=account.pk, amount=7, key=f"n{account.pk}", expires_at=later
    )


def settling(held: Hold, **_: object) -> Callable[[], object]:
    return partial(money.settle_and_record, held, 700)


def refunding(order: Any, **_: object) -> Callable[[], object]:
    return partial(postings.refund, order_id=order.pk, credits=900, key=f"r{order.pk}")


def giving_back(order: Any, account: Account, **_: object) -> Callable[[], object]:
    money.refund(order, 900)
    owed = money.state(account)[2]
    return partial(
        postings.give_back, order_id=order.pk, credits=500, debt=owed, key=f"b{order.pk}"
    )


def adjusting(account: Account, **_: object) -> Callable[[], object]:
    return partial(
        postings.adjust, account_id=account.pk, amount=-7, key=f"a{account.pk}",
        actor_id=account.user_id, note="a correction",
    )  # fmt: skip


CALLS = [granting, holding, settling, refunding, giving_back, adjusting]


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


@pytest.mark.parametrize("call", CALLS)
def test_a_fault_at_any_statement_leaves_no_trace(call, settings):
    settings.SIGNUP_CREDITS = 0
    account, given = lived_in()
    fn = call(**given)
    counter = Faults(at=0)
    money_transaction(with_faults, fn, counter)
    right = end_state(account)
    assert counter.seen > 2
    for number in range(1, counter.seen + 1):
        account, given = lived_in()
        fn = call(**given)
        before = end_state(account)
        with pytest.raises(Fault):
            money_transaction(with_faults, fn, Faults(at=number))
        assert end_state(account) == before
        money_transaction(fn)
        assert end_state(account) == right


@pytest.mark.parametrize("call", CALLS)
def test_a_fault_just_before_the_commit_leaves_no_trace(call, settings):
    settings.SIGNUP_CREDITS = 0
    account, given = lived_in()
    fn = call(**given)
    before = end_state(account)

    def dies() -> None:
        fn()
        raise Fault

    with pytest.raises(Fault):
        money_transaction(dies)
    assert end_state(account) == before


@pytest.mark.parametrize("call", CALLS)
def test_who_did_not_hear_of_the_commit_calls_again(call, settings):
    settings.SIGNUP_CREDITS = 0
    account, given = lived_in()
    fn = call(**given)

    def dies_after() -> None:
        fn()
        transaction.on_commit(partial(raise_fault))

    with pytest.raises(Fault):
        money_transaction(dies_after)
    done = end_state(account)
    money_transaction(fn)
    assert end_state(account) == done


def raise_fault() -> None:
    raise Fault
