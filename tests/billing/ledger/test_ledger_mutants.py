"""Mutation tests: deliberate faults, each of which the machine of test_ledger_machine must find.

A mutant is the ledger's source with one place changed. When that place is rewritten a test fails:
then write the mutant again.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import Phase
from hypothesis.errors import Flaky
from hypothesis.stateful import run_state_machine_as_test

from billing.ledger import postings
from tests.billing.ledger.ledger_machine import LedgerMachine
from tests.billing.ledger.test_ledger_machine import machine_settings
from tests.support import money

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.timeout(900)]

MUTANTS = {
    "expiry ignores holds": (
        "min(lot.remaining, account.available) if lot.is_past else 0",
        "lot.remaining if lot.is_past else 0",
    ),
    "nothing expires": ("account.next_expiry_at > now:", "account.next_expiry_at:"),
    "a hold resolves twice": ("found.status != Hold.Status.ACTIVE", "False"),
    "a resolved hold is released again": (
        "return Settlement(found.settled or 0, found.shortfall, is_new=False)",
        "_save(_remember(found.account)); return Settlement(0, 0, is_new=False)",
    ),
    "the charge is not capped": ("charged = min(cost, account.available)", "charged = cost"),
    "the charge is capped by the hold": (
        "charged = min(cost, account.available)",
        "charged = min(cost, found.amount)",
    ),
    "a settled hold stays held": ("account.held -= found.amount", "pass"),
    "a shortfall is forgotten": ('"shortfall": shortfall,', '"shortfall": 0,'),
    "frozen accounts hold": ("AND status = 'active' AND debt = 0", "AND debt = 0"),
    "holds overlap": ("balance >= held + %(amount)s", "balance >= %(amount)s"),
    "a hold forgets what is due": (
        "AND (next_expiry_at IS NULL OR next_expiry_at > %(now)s)",
        "",
    ),
    "a grant forgets when it expires": ("if expires_at is not None:", "if False:"),
    "a key gives any amount": (
        "!= (account_id, kind, amount):",
        "!= (account_id, kind, entry.amount):",
    ),
    "a key gives twice": ("return Posted(entry, is_new=False)", "return None"),
    "what was bought is spent first": ("kind = 'paid', id", "kind <> 'paid', id"),
    "the priority is ignored": ("is_past DESC, priority,", "is_past DESC,"),
    "the last to expire is spent first": ("expires_at NULLS LAST", "expires_at DESC NULLS LAST"),
    "a refund takes from anywhere": (
        "_take(account, taken, first=order_id)",
        "_take(account, taken)",
    ),
    "a refund takes what is held": (
        "taken = min(credits, account.available)",
        "taken = min(credits, account.balance)",
    ),
    "a refund forgives": ("owed = credits - taken", "owed = 0"),
    "a refund is taken twice": ("if done is not None:", "if False:"),
    "debt is not paid": ("paid = min(account.debt, account.available)", "paid = 0"),
    "debt is paid with what is held": (
        "paid = min(account.debt, account.available)",
        "paid = min(account.debt, account.balance)",
    ),
    "what is given back leaves the debt": ("forgiven = min(debt, account.debt)", "forgiven = 0"),
    "debt that was paid does not come back": (
        "amount = credits + debt - forgiven",
        "amount = credits",
    ),
    "a correction takes what is held": (
        "if account.available < -amount:",
        "if account.balance < -amount:",
    ),
    "a hold is shortened": ("greatest(expires_at, %s)", "least(expires_at, %s)"),
    "lots keep what was taken": (
        "SET remaining = remaining + part.amount",
        "SET remaining = remaining",
    ),
    "an entry names no lots": ("FROM entry, part\n", "FROM entry, part WHERE FALSE\n"),
    "the seq stands still": ("account.seq += 1", "account.seq += 0"),
}


# One mutant of each of these kinds: holds, charges, keys, refunds. All of them take minutes.
USUAL = {
    "a hold resolves twice",
    "the charge is not capped",
    "a key gives twice",
    "a refund is taken twice",
}
NAMES = [pytest.param(name, marks=() if name in USUAL else (pytest.mark.long,)) for name in MUTANTS]


def test_every_mutant_matches_the_ledgers_source():
    source = Path(postings.__file__).read_text()
    assert [name for name, (old, _) in MUTANTS.items() if old not in source] == []


@pytest.mark.parametrize("name", NAMES)
def test_machine_finds_the_mutant(name, monkeypatch):
    monkeypatch.setattr(money, "postings", mutant(*MUTANTS[name]))
    # The same examples each time, and no shrinking: that it fails is enough.
    machine = machine_settings(
        400, derandomize=True, database=None, phases=[Phase.generate], report_multiple_bugs=False
    )
    with pytest.raises(Exception) as found:  # noqa: PT011 # the database's or the model's, of any kind
        run_state_machine_as_test(LedgerMachine, settings=machine)
    assert not isinstance(found.value, Flaky), "the time limit of the test, not the machine"


def mutant(old: str, new: str) -> ModuleType:
    """A second ledger, which no other module imports."""
    source = Path(postings.__file__).read_text()
    assert old in source, "the ledger was rewritten here: write this mutant again"
    module = ModuleType("billing.ledger_mutant")
    sys.modules[module.__name__] = module  # dataclasses look there
    exec(compile(source.replace(old, new), postings.__file__, "exec"), module.__dict__)  # noqa: S102
    return module
