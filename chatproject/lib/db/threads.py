"""The only way from an event loop to the database: `run`, in one of DB_THREADS threads.

A call's connection returns to psycopg's pool when the call ends, so a process holds at most one
connection per running call. Channels' own helper would put all calls of a process through one thread
(docs/architecture.md).
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from functools import cache, partial
from typing import ParamSpec, TypeVar

from django.conf import settings
from django.db import InterfaceError, OperationalError, connections
from psycopg_pool import PoolTimeout

logger = logging.getLogger(__name__)

# Raised by a call while Postgres does not answer or gives no connection: it may be tried again.
# Other database errors are bugs, and a repetition would fail alike.
UNREACHABLE = (OperationalError, InterfaceError, PoolTimeout)

# Seconds after which a computing thread lets the event loop run: with Python's 5 ms each token would
# wait for the messages that are being stored.
SWITCH_INTERVAL = 0.001

DEFERRED_AFTER = 0.02  # seconds from a response to its deferred calls

P = ParamSpec("P")
T = TypeVar("T")


async def run(fn: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a synchronous function that uses the database, without blocking the event loop.

    Waits for a free thread when all are busy. Raises what the function raises. When the caller is
    cancelled the function still runs to its end: write it so that this does no harm.
    """
    loop = asyncio.get_running_loop()
    deferred: list[Callable[[], object]] = []
    work = _threads().submit(partial(_call, deferred, fn, *args, **kwargs))
    work.add_done_callback(lambda _: _schedule(loop, deferred))
    return await asyncio.wrap_future(work)


@cache
def _threads() -> ThreadPoolExecutor:
    sys.setswitchinterval(SWITCH_INTERVAL)
    return ThreadPoolExecutor(max_workers=settings.DB_THREADS, thread_name_prefix="db")


def after_response(fn: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
    """Call a function just after the response of the enclosing `run`; at once outside of one.

    For work that no caller waits for: until then the processor is left to waiting callers. An
    exception is logged and goes no further.
    """
    deferred = _deferred.get()
    call = partial(fn, *args, **kwargs)
    if deferred is None:
        _call_all([call])
    else:
        deferred.append(call)


_deferred: ContextVar[list[Callable[[], object]] | None] = ContextVar("deferred", default=None)


def _call(
    deferred: list[Callable[[], object]], fn: Callable[P, T], *args: P.args, **kwargs: P.kwargs
) -> T:
    token = _deferred.set(deferred)
    try:
        return fn(*args, **kwargs)
    finally:
        _deferred.reset(token)
        connections.close_all()


def _schedule(loop: asyncio.AbstractEventLoop, deferred: list[Callable[[], object]]) -> None:
    """Hand the deferred calls of an ended call to a thread of their own; called in its thread."""
    if not deferred:
        return

    def call() -> None:
        _call([], _call_all, deferred)

    def submit() -> None:
        del _waiting[call]
        _threads().submit(call)

    def wait() -> None:
        _waiting[call] = loop.call_later(DEFERRED_AFTER, submit)

    try:
        loop.call_soon_threadsafe(wait)
    except RuntimeError:  # the loop is closed
        call()


_waiting: dict[Callable[[], None], asyncio.TimerHandle] = {}


async def run_deferred() -> None:
    """Run the calls that `after_response` deferred at once, before the event loop ends."""
    while _waiting:
        call, timer = _waiting.popitem()
        timer.cancel()
        await asyncio.to_thread(call)


def _call_all(calls: Iterable[Callable[[], object]]) -> None:
    for call in calls:
        try:
            call()
        except Exception:
            logger.exception("a deferred call failed")
