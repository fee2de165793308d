"""Transactions in which money is written: the only way to the ledger."""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import ParamSpec, TypeVar

from django.db import OperationalError, connection, transaction
from psycopg.pq import TransactionStatus

from chatproject.lib import metrics
from chatproject.lib.db import limits

logger = logging.getLogger(__name__)

# SQLSTATEs of transactions that were in each other's way: serialization_failure, deadlock_detected,
# lock_not_available. Any other failure would repeat itself.
LOCK_ERRORS = frozenset({"40001", "40P01", "55P03"})

MONEY_TRIES = 6
MONEY_PAUSE = 0.020  # seconds; the longest pause before the second try, then doubled each time
MONEY_SECONDS = 9.0  # for all tries together
LOCK_SECONDS = 3.0  # for a lock, in each try
LEAST_SECONDS = 0.2  # that must be left for another try

# For one transaction only: a pooler between us and Postgres gives the session to other clients. A
# session whose client was lost keeps its locks no longer than the second setting.
MONEY_SETTINGS = (
    "SET LOCAL lock_timeout = '{lock:.0f}ms'; SET LOCAL idle_in_transaction_session_timeout = '10s'"
)

P = ParamSpec("P")
T = TypeVar("T")


class MoneyBusy(OperationalError):
    """A money transaction met other transactions at each of its tries; nothing was written."""


_in_money: ContextVar[bool] = ContextVar("in_money", default=False)
_before_commit: ContextVar[Callable[[], object]] = ContextVar("before_commit", default=lambda: None)


@contextmanager
def before_commit(check: Callable[[], object]) -> Iterator[None]:
    """Call `check` before each COMMIT of `money_transaction` in the block; its exception rolls back.

    For a right that may have ended while the transaction waited for a lock.
    """
    token = _before_commit.set(check)
    try:
        yield
    finally:
        _before_commit.reset(token)


def money_transaction(fn: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function in the outermost, durable transaction in which money may be written.

    After a lock error it is called again from its beginning, MONEY_TRIES times in all with random
    pauses: write it so that it only touches the database, and reads inside what it decides on. It
    never uses the network. Raises MoneyBusy after the last try, RuntimeError inside another
    transaction, and any other exception of the function.
    """
    answer = limits.time_left()
    give_up_at = time.monotonic() + min(MONEY_SECONDS, MONEY_SECONDS if answer is None else answer)
    for turn in range(MONEY_TRIES):
        committed: list[bool] = []
        left = give_up_at - time.monotonic()
        try:
            return _in_transaction(partial(fn, *args, **kwargs), committed, left)
        except OperationalError as error:
            sqlstate = getattr(error.__cause__, "sqlstate", None)
            # Exceptions of on_commit callbacks pass here too, when all is written already.
            if committed or sqlstate not in LOCK_ERRORS:
                raise
            pause = random.uniform(0, MONEY_PAUSE * 2**turn)  # noqa: S311 # not a secret
            is_late = time.monotonic() + pause + LEAST_SECONDS > give_up_at
            if turn == MONEY_TRIES - 1 or is_late:
                metrics.MONEY_BUSY.inc()
                raise MoneyBusy(str(error)) from error
            metrics.MONEY_RETRIES.labels(sqlstate).inc()
            if turn >= 2:
                logger.warning("a money transaction is tried again (%d): %s", turn + 2, error)
            time.sleep(pause)
    raise AssertionError("unreachable")


def _in_transaction(fn: Callable[[], T], committed: list[bool], seconds: float) -> T:
    with transaction.atomic(durable=True):
        transaction.on_commit(partial(committed.append, True))
        # Of several that wait for a row, each waits twice: for its turn, then for the row. Both
        # together take less than the statement may, whose limit ends more than the try.
        statement = (limits.statement_limit() or math.inf) / 2 - LEAST_SECONDS
        _begin_money(max(LEAST_SECONDS, min(LOCK_SECONDS, statement, seconds)))
        token = _in_money.set(True)
        try:
            result = fn()
        finally:
            _in_money.reset(token)
        _before_commit.get()()
        return result


def _begin_money(lock_seconds: float) -> None:
    """Send BEGIN and MONEY_SETTINGS in one round trip.

    psycopg would send a BEGIN of its own ahead of the first statement, unless its connection is in
    autocommit mode. So that is set here; Django sets it at the end of the transaction anyway.
    """
    psycopg = connection.connection
    begin = psycopg.info.transaction_status == TransactionStatus.IDLE  # in a test it may be begun
    if begin:
        psycopg.autocommit = True
    set_up = MONEY_SETTINGS.format(lock=lock_seconds * 1000)
    with connection.cursor() as cursor:
        cursor.execute(f"BEGIN; {set_up}" if begin else set_up)


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
