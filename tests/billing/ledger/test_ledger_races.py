"""Many at once on one account: threads with connections of their own, begun together."""

from __future__ import annotations

import random
import threading
import time
import uuid
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from django.db import connections
from django.utils import timezone

from billing.ledger import postings, signup
from billing.models import Hold, LedgerEntry
from chatproject.lib import db, metrics
from tests.billing.ledger.test_ledger_mutants import mutant
from tests.support import money

pytestmark = pytest.mark.django_db(transaction=True)


def race(calls: list[Callable[[], object]], threads: int = 12) -> list[Any]:
    """Call all of them, so many at once; what each returned or raised."""
    results: list[Any] = [None] * len(calls)
    together = threading.Barrier(threads)

    def work(first: int) -> None:
        together.wait()
        for number in range(first, len(calls), threads):
            try:
                results[number] = calls[number]()
            except Exception as error:  # noqa: BLE001 # the caller looks at it
                results[number] = error
        connections.close_all()

    workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return results


def test_equal_grants_give_once(account):
    done = race([lambda: money.grant(account, 10, key="the same")] * 64)
    assert sorted(one.is_new for one in done) == [False] * 63 + [True]
    assert len({one.entry.pk for one in done}) == 1
    assert money.state(account) == (10, 0, 0)
    assert money.problems() == []


def test_holds_take_no_more_than_there_is(account):
    money.grant(account, 1_500_000)
    done = race([lambda: money.hold(account, 30_000)] * 64)
    refused = [one for one in done if isinstance(one, postings.InsufficientCredits)]
    assert (len([one for one in done if isinstance(one, Hold)]), len(refused)) == (50, 14)
    assert money.state(account) == (1_500_000, 1_500_000, 0)
    assert money.problems() == []


def test_two_hundred_holds_on_credits_for_three(account):
    money.grant(account, 100)
    done = race([lambda: money.hold(account, 30)] * 200)
    assert sum(isinstance(one, Hold) for one in done) == 3
    assert sum(isinstance(one, postings.InsufficientCredits) for one in done) == 197
    assert money.state(account) == (100, 90, 0)


def test_equal_holds_are_one(account):
    money.grant(account, 1000)
    done = race([lambda: money.hold(account, 10, key="the same")] * 64)
    assert len({one.pk for one in done}) == 1
    assert money.state(account) == (1000, 10, 0)


def test_a_hold_that_three_settle_is_charged_once(account):
    money.grant(account, 10_000)
    holds = [money.hold(account, 30) for _ in range(30)]
    calls: list[Callable[[], object]] = [
        partial(money.settle, held, cost) for held in holds for cost in (20, 25, 0)
    ]
    done = race(calls)
    assert not [one for one in done if isinstance(one, Exception)]
    for three in zip(*[iter(done)] * 3, strict=True):
        assert sum(one.is_new for one in three) == 1
        assert len({one.charged for one in three}) == 1
    charged = sum(one.charged for one in done if one.is_new)
    assert money.state(account) == (10_000 - charged, 0, 0)
    assert money.problems() == []


def test_equal_refunds_take_once(account):
    order = money.order(account, 1000)
    refund = money.claim(order, "refund")
    done = race([lambda: money.refund(order, 400, key="r", refund=refund)] * 32)
    assert set(done) == {postings.TakenBack(400, 0)}
    race([lambda: money.give_back(order, 400, 0, key="b", refund=refund)] * 32)
    assert money.state(account) == (1000, 0, 0)


def test_accounts_are_opened_once(account, settings):
    settings.SIGNUP_CREDITS = 7
    user = type(account.user).objects.create_user("fresh@example.org")
    open_it = lambda: db.money_transaction(signup.open_account, user_id=user.pk)  # noqa: E731
    assert len({one.pk for one in race([open_it] * 32)}) == 1
    assert user.account.balance == 7


def mixed(account, seconds: float, threads: int = 8) -> list[Exception]:
    """All kinds of calls on one account for a while; what they raised that is not a refusal."""
    order = money.order(account, 1_000_000)
    end = time.monotonic() + seconds
    raised: list[Exception] = []

    def one(chance: random.Random) -> None:
        soon = timezone.now() + timedelta(seconds=chance.uniform(-0.1, 0.5))
        match chance.randrange(8):
            case 0:
                money.grant(
                    account, chance.randint(1, 5000), expires_at=chance.choice([None, soon])
                )
            case 1:
                claim = money.claim(order, "refund")
                done = money.refund(order, chance.randint(1, 50), refund=claim)
                claim.credits, claim.debt = done.credits, done.debt
                claim.save()
            case 2:
                db.money_transaction(money.postings.expire, account_id=account.pk)
            case 3:
                db.money_transaction(
                    money.postings.adjust, account_id=account.pk, amount=-chance.randint(1, 50),
                    key=uuid.uuid4().hex, actor_id=account.user_id, note="a correction",
                )  # fmt: skip
            case _:
                held = money.hold(account, chance.randint(1, 2000))
                money.settle(held, chance.randint(0, 2500))

    def work(seed: int) -> None:
        chance = random.Random(seed)
        while time.monotonic() < end and not raised:
            try:
                one(chance)
            except money.postings.LedgerError:
                pass
            except Exception as error:  # noqa: BLE001 # the caller looks at it
                raised.append(error)

    race([partial(work, seed) for seed in range(threads)], threads)
    return raised


def test_everything_at_once_leaves_the_books_right(account):
    given_up = metrics.MONEY_BUSY._value.get()
    assert mixed(account, 4) == []
    assert LedgerEntry.objects.count() > 20
    # A claim whose refund was refused for a moment is no problem of the ledger's.
    assert money.problems() == []
    assert metrics.MONEY_BUSY._value.get() == given_up


LOCKS_REMOVED = {
    "of the account": (
        "Account.objects.select_for_update(no_key=True).get(pk=account_id)",
        "Account.objects.get(pk=account_id)",
    ),
    "of hold and account": (" FOR NO KEY UPDATE OF hold, account", ""),
}


@pytest.mark.parametrize("lock", LOCKS_REMOVED)
def test_a_missing_lock_is_noticed_and_does_no_harm(account, lock, monkeypatch):
    monkeypatch.setattr(money, "postings", mutant(*LOCKS_REMOVED[lock]))
    assert mixed(account, 20)  # ends at the first error
    assert money.problems() == []
