"""Transactions in which money is written: the only way to the ledger."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from contextvars import ContextVar
from functools import partial
from typing import ParamSpec, TypeVar

from django.db import OperationalError, connection, transaction
from psycopg.pq import TransactionStatus

from chatproject.lib import metrics

logger = logging.getLogger(__name__)

# SQLSTATEs of transactions that were in each other's way: serialization_failure, deadlock_detected,
# lock_not_available. Any other failure would repeat itself.
LOCK_ERRORS = frozenset({"40001", "40P01", "55P03"})

MONEY_TRIES = 6
MONEY_PAUSE = 0.020  # seconds; the longest pause before the second try, then doubled each time

# For one transaction only: a pooler between us and Postgres gives the session to other clients.
MONEY_SETTINGS = (
    "SET LOCAL lock_timeout = '5s'; SET LOCAL idle_in_transaction_session_timeout = '30s'"
)

P = ParamSpec("P")
T = TypeVar("T")


class MoneyBusy(OperationalError):
    """A money transaction met other transactions at each of its tries; nothing was written."""


_in_money: ContextVar[bool] = ContextVar("in_money", default=False)


def money_transaction(fn: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function in the outermost, durable transaction in which money may be written.

    After a lock error it is called again from its beginning, MONEY_TRIES times in all with random
    pauses: write it so that it only touches the database, and reads inside what it decides on. It
    never uses the network. Raises MoneyBusy after the last try, RuntimeError inside another
    transaction, and any other exception of the function.
    """
    for turn in range(MONEY_TRIES):
        committed: list[bool] = []
        try:
            return _in_transaction(partial(fn, *args, **kwargs), committed)
        except OperationalError as error:
            sqlstate = getattr(error.__cause__, "sqlstate", None)
            # Exceptions of on_commit callbacks pass here too, when all is written already.
            if committed or sqlstate not in LOCK_ERRORS:
                raise
            if turn == MONEY_TRIES - 1:
                metrics.MONEY_BUSY.inc()
                raise MoneyBusy(str(error)) from error
            metrics.MONEY_RETRIES.labels(sqlstate).inc()
            if turn >= 2:
                logger.warning("a money transaction is tried again (%d): %s", turn + 2, error)
            time.sleep(random.uniform(0, MONEY_PAUSE * 2**turn))  # noqa: S311 # not a secret
    raise AssertionError("unreachable")


def _in_transaction(fn: Callable[[], T], committed: list[bool]) -> T:
    with transaction.atomic(durable=True):
        transaction.on_commit(partial(committed.append, True))
        _begin_money()
        token = _in_money.set(True)
        try:
            return fn()
        finally:
            _in_money.reset(token)


def _begin_money() -> None:
    """Send BEGIN and MONEY_SETTINGS in one round trip.

    psycopg would send a BEGIN of its own ahead of the first statement, unless its connection is in
    autocommit mode. So that is set here; Django sets it at the end of the transaction anyway.
    """
    psycopg = connection.connection
    begin = psycopg.info.transaction_status == TransactionStatus.IDLE  # in a test it may be begun
    if begin:
        psycopg.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute(f"BEGIN; {MONEY_SETTINGS}" if begin else MONEY_SETTINGS)


def after_commit(fn: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
    """Call a function when the transaction is committed; an exception is logged and goes no further.

    Django's `on_commit(partial(…), robust=True)` fails at that: to log the exception it reads the
    function's name, which a partial lacks, and raises after all.
    """

    def call() -> None:
        fn(*args, **kwargs)

    transaction.on_commit(call, robust=True)


def in_money_transaction() -> bool:
    """Return whether the caller is inside `money_transaction`."""
    return _in_money.get() and connection.in_atomic_block
