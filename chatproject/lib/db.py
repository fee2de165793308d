"""How asynchronous code reaches the database, and the transactions in which money is written.

`run` is the only way from an event loop to the database. A call runs in one of DB_THREADS threads of this process. Its connection goes back to psycopg's pool
when the call is over, so that a process holds no more connections than it has calls under way.
Channels' own helper would put all calls of a process through one thread (see docs/architecture.md).

`money_transaction` is the only way to the ledger.
"""

from __future__ import annotations

import asyncio
import logging
import random
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from functools import cache, partial
from typing import ParamSpec, TypeVar

from django.conf import settings
from django.db import InterfaceError, OperationalError, connection, connections, transaction
from psycopg.pq import TransactionStatus
from psycopg_pool import PoolTimeout

from chatproject.lib import metrics

logger = logging.getLogger(__name__)

# What a call raises while Postgres does not answer or gives no connection: it may be tried again.
# Other database errors are faults of ours, and trying again would not help.
UNREACHABLE = (OperationalError, InterfaceError, PoolTimeout)

# Seconds after which a thread that computes lets the event loop go on: with Python's 5 ms each token
# would wait for the messages that are being stored.
GIVE_WAY = 0.001

NEWS_AFTER = 0.02  # seconds from an answer to what is left for after it

P = ParamSpec("P")
T = TypeVar("T")


async def run(fn: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a synchronous function that uses the database, without blocking the event loop.

    Waits for a free thread when all are busy. Raises what the function raises. When the caller is
    cancelled the function still runs to its end: write it so that this does no harm.
    """
    loop = asyncio.get_running_loop()
    later: list[Callable[[], object]] = []
    work = _threads().submit(partial(_call, later, fn, *args, **kwargs))
    work.add_done_callback(lambda _: _call_later(loop, later))
    return await asyncio.wrap_future(work)


@cache
def _threads() -> ThreadPoolExecutor:
    sys.setswitchinterval(GIVE_WAY)
    return ThreadPoolExecutor(max_workers=settings.DB_THREADS, thread_name_prefix="db")


# What Postgres says when two transactions were in each other's way: serialization_failure,
# deadlock_detected, lock_not_available. Whatever else fails would fail again.
LOCK_ERRORS = frozenset({"40001", "40P01", "55P03"})

MONEY_TRIES = 6
MONEY_PAUSE = 0.020  # seconds; the longest pause before the second try, then doubled each time

# For one transaction only: a server-side pool between us and Postgres gives the session to others.
MONEY_SETTINGS = (
    "SET LOCAL lock_timeout = '5s'; SET LOCAL idle_in_transaction_session_timeout = '30s'"
)


class MoneyBusy(OperationalError):
    """A money transaction met other transactions at each of its tries; nothing was written."""


_in_money: ContextVar[bool] = ContextVar("in_money", default=False)


def money_transaction(fn: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function in the outermost, durable transaction in which money may be written.

    It is called again from its beginning after a lock error, MONEY_TRIES times in all with random
    pauses: write it so that it only touches the database, and reads what it decides on inside. It
    never talks to the network. Raises MoneyBusy after the last try, RuntimeError inside another
    transaction, and whatever else the function raises.
    """
    for turn in range(MONEY_TRIES):
        committed: list[bool] = []
        try:
            return _in_transaction(partial(fn, *args, **kwargs), committed)
        except OperationalError as error:
            sqlstate = getattr(error.__cause__, "sqlstate", None)
            # What on_commit callbacks raise comes through here too, when all is written already.
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

    psycopg would send a BEGIN of its own ahead of the first statement, unless the connection commits
    each statement by itself. So it is told that this one does; Django tells it so at the end anyway.
    """
    psycopg = connection.connection
    begin = psycopg.info.transaction_status == TransactionStatus.IDLE  # in a test it may be begun
    if begin:
        psycopg.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute(f"BEGIN; {MONEY_SETTINGS}" if begin else MONEY_SETTINGS)


def after_commit(fn: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
    """Call a function when the transaction is committed; what it raises is logged and no more.

    Django's `on_commit(partial(…), robust=True)` does not bear that: to log what failed it asks for
    a name, which a partial has not, and then raises after all.
    """

    def call() -> None:
        fn(*args, **kwargs)

    transaction.on_commit(call, robust=True)


def after_answer(fn: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
    """Call a function a moment after the answer of the `run` that this is in; at once outside of it.

    For news that nobody waits for: until then the processor is left to those who do. What it raises
    is logged and no more.
    """
    later = _later.get()
    call = partial(fn, *args, **kwargs)
    if later is None:
        _call_all([call])
    else:
        later.append(call)


def in_money_transaction() -> bool:
    """Whether the caller is inside `money_transaction`."""
    return _in_money.get() and connection.in_atomic_block


_later: ContextVar[list[Callable[[], object]] | None] = ContextVar("later", default=None)


def _call(
    later: list[Callable[[], object]], fn: Callable[P, T], *args: P.args, **kwargs: P.kwargs
) -> T:
    token = _later.set(later)
    try:
        return fn(*args, **kwargs)
    finally:
        _later.reset(token)
        connections.close_all()


def _call_later(loop: asyncio.AbstractEventLoop, later: list[Callable[[], object]]) -> None:
    """In the thread of a call that is over: hand what it left for later to a thread of its own."""
    if not later:
        return

    def call() -> None:
        _call([], _call_all, later)

    def submit() -> None:
        del _waiting[call]
        _threads().submit(call)

    def wait() -> None:
        _waiting[call] = loop.call_later(NEWS_AFTER, submit)

    try:
        loop.call_soon_threadsafe(wait)
    except RuntimeError:  # the loop is closed
        call()


_waiting: dict[Callable[[], None], asyncio.TimerHandle] = {}


async def tell_news() -> None:
    """Do at once what `after_answer` left for later, before the event loop ends."""
    while _waiting:
        call, timer = _waiting.popitem()
        timer.cancel()
        await asyncio.to_thread(call)


def _call_all(calls: Iterable[Callable[[], object]]) -> None:
    for call in calls:
        try:
            call()
        except Exception:
            logger.exception("what was left for later failed")
