"""The database: from event loops by `run`, for money by `money_transaction`."""

from __future__ import annotations

from chatproject.lib.db.threads import (
    UNREACHABLE,
    after_response,
    run,
    run_deferred,
    run_within,
)
from chatproject.lib.db.transactions import (
    MoneyBusy,
    after_commit,
    before_commit,
    in_money_transaction,
    money_transaction,
)

__all__ = [
    "UNREACHABLE",
    "MoneyBusy",
    "after_commit",
    "after_response",
    "before_commit",
    "in_money_transaction",
    "money_transaction",
    "run",
    "run_deferred",
    "run_within",
]
