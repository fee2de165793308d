"""Concurrent calls on one account."""

from __future__ import annotations

import random
import time
from datetime import timedelta
from functools import partial

import pytest
from django.utils import timezone

from billing.ledger import postings, signup
from billing.models import Hold, LedgerEntry
from chatproject.lib.db import money_transaction
from tests.billing.ledger.test_ledger_mutants import mutant
from tests.support import money
from tests.support.threads import race

pytestmark = pytest.mark.django_db(transaction=True)


def test_equal_grants_count_once(account):
    done = race([lambda: money.grant(account, 10, key="the same")] * 64)
    assert sorted(one.is_new for one in done) == [False] * 63 + [True]
    assert len({one.entry.pk for one in done}) == 1
    assert money.state(account) == (10, 0, 0)
    assert money.problems() == []


@pytest.mark.parametrize(
    ("credits", "amount", "calls", "held"), [(1_500_000, 30_000, 64, 50), (100, 30, 200, 3)]
)
def test_holds_never_exceed_the_balance(account, credits, amount, calls, held):
    money.grant(account, credits)
    done = race([lambda: money.hold(account, amount)] * calls)
    assert sum(isinstance(one, Hold) for one in done) == held
    assert sum(isinstance(one, postings.InsufficientCredits) for one in done) == calls - held
    assert money.state(account) == (credits, held * amount, 0)
    assert money.problems() == []


def test_equal_holds_count_once(account):
    money.grant(account, 1000)
    done = race([lambda: money.hold(account, 10, key="the same")] * 64)
    assert len({one.pk for one in done}) == 1
    assert money.state(account) == (1000, 10, 0)


def test_hold_settled_three_times_is_charged_once(account):
    money.grant(account, 10_000)
    holds = [money.hold(account, 30) for _ in range(30)]
    done = race([partial(money.settle, held, cost) for held in holds for cost in (20, 25, 0)])
    assert not [one for one in done if isinstance(one, Exception)]
    for three in zip(*[iter(done)] * 3, strict=True):
        assert sum(one.is_new for one in three) == 1
        assert len({one.charged for one in three}) == 1
    charged = sum(one.charged for one in done if one.is_new)
    assert money.state(account) == (10_000 - charged, 0, 0)
    assert money.problems() == []


def test_equal_refunds_count_once(account):
    order = money.order(account, 1000)
    refund = money.claim(order, "refund")
    done = race([lambda: money.refund(order, 400, key="r", refund=refund)] * 32)
    assert set(done) == {postings.TakenBack(400, 0)}
    race([lambda: money.give_back(order, 400, 0, key="b", refund=refund)] * 32)
    assert money.state(account) == (1000, 0, 0)


def test_account_is_opened_once(account, settings):
    settings.SIGNUP_CREDITS = 7
    user = type(account.user).objects.create_user("fresh@example.org")
    open_account = partial(money_transaction, signup.open_account, user_id=user.pk)
    assert len({one.pk for one in race([open_account] * 32)}) == 1
    assert user.account.balance == 7


def mixed(account, seconds: float) -> list[Exception]:
    """Make all kinds of calls on one account for a while; returns the unexpected exceptions."""
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
                key = money.claim_key(claim)
                done = money.refund(order, chance.randint(1, 50), refund=claim, key=key)
                claim.credits, claim.debt = done.credits, done.debt
                claim.save()
            case 2:
                money.expire(account)
            case 3:
                money.adjust(account, -chance.randint(1, 50))
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
            except Exception as error:  # noqa: BLE001 # the caller checks it
                raised.append(error)

    race([partial(work, seed) for seed in range(8)])
    return raised


def test_mixed_concurrent_calls_keep_the_ledger_consistent(account):
    assert mixed(account, 4) == []
    assert LedgerEntry.objects.count() > 20
    # A claim whose refund was refused is no problem of the ledger.
    assert money.ledger_problems() == []


LOCKS_REMOVED = {
    "of the account": (
        "Account.objects.select_for_update(no_key=True).get(pk=account_id)",
        "Account.objects.get(pk=account_id)",
    ),
    "of hold and account": (" FOR NO KEY UPDATE OF hold, account", ""),
}


@pytest.mark.parametrize("lock", LOCKS_REMOVED)
def test_missing_lock_is_noticed_and_harmless(account, lock, monkeypatch):
    monkeypatch.setattr(money, "postings", mutant(*LOCKS_REMOVED[lock]))
    assert mixed(account, 20)  # ends at the first error
    assert money.ledger_problems() == []
