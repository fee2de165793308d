"""The only way from an event loop to the database: `run`, in one of DB_THREADS threads.

A call's connection returns to psycopg's pool when the call ends, so a process holds at most one
connection per running call. Channels' own helper would put all calls of a process through one thread
(docs/architecture.md).
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import ContextVar, copy_context
from functools import cache, partial
from typing import Any, ParamSpec, TypeVar

from django.conf import settings
from django.db import InterfaceError, OperationalError, connections
from django.utils import translation
from psycopg_pool import PoolTimeout

from chatproject.lib.db import limits

logger = logging.getLogger(__name__)

# Raised by a call while Postgres does not answer or gives no connection: it may be tried again.
# Other database errors are bugs, and a repetition would fail alike.
UNREACHABLE = (OperationalError, InterfaceError, PoolTimeout)

# Seconds after which a computing thread lets the event loop run: with Python's 5 ms each token would
# wait for the messages that are being stored.
SWITCH_INTERVAL = 0.001

# Seconds that a caller of `run_within` waits for a thread while no call has succeeded for SILENCE.
MAX_WAIT = 4.0
SILENCE = 3.0

DEFERRED_AFTER = 0.02  # seconds from a response to its deferred calls

P = ParamSpec("P")
T = TypeVar("T")


async def run(fn: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a synchronous function that uses the database, without blocking the event loop.

    Waits for a free thread when all are busy. Raises what the function raises. When the caller is
    cancelled the function still runs to its end: write it so that this does no harm.
    """
    return await _run(None, partial(fn, *args, **kwargs))


async def run_within(seconds: float, fn: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """`run` for a caller that must have an answer after so many seconds while Postgres is silent.

    Raises OperationalError, without a call of the function, when no thread is free because Postgres
    answers none of them, and what the function raises when it is not answered in time (lib.db.limits).
    A caller that waits for its turn among many others gets it, however late.
    """
    return await _run(seconds, partial(fn, *args, **kwargs))


async def _run(answer_within: float | None, fn: Callable[[], T]) -> T:
    loop = asyncio.get_running_loop()
    deferred: list[Callable[[], object]] = []
    answer_at = answer_within and time.monotonic() + answer_within
    # With the caller's context, so that lines of the log have its ids, and in its language, which asgiref
    # keeps apart for each thread.
    fn = partial(_translated, translation.get_language(), fn)
    work = _threads().submit(copy_context().run, _call, deferred, answer_at, fn)
    work.add_done_callback(lambda _: _schedule(loop, deferred))
    if answer_within is None:
        return await asyncio.wrap_future(work)
    timer = loop.call_later(MAX_WAIT, _give_up, loop, work)
    try:
        return await asyncio.wrap_future(work)
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if work.cancelled() and not (task and task.cancelling()):
            raise OperationalError("no thread is free: Postgres is silent") from None
        raise
    finally:
        timer.cancel()


def _translated(language: str | None, fn: Callable[[], T]) -> T:
    with translation.override(language):
        return fn()


def _give_up(loop: asyncio.AbstractEventLoop, work: Future[Any]) -> None:
    """Cancel a call that has not begun while all threads wait for a silent Postgres.

    A call that has begun goes on: only its end shows what was stored.
    """
    if work.done() or work.running():
        return
    if time.monotonic() - _answered_at > SILENCE:
        work.cancel()
    else:
        loop.call_later(1.0, _give_up, loop, work)


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


def _call(deferred: list[Callable[[], object]], answer_at: float | None, fn: Callable[[], T]) -> T:
    global _answered_at
    if answer_at is not None:
        # Among many others the wait for this thread may have been longer than the time for an answer.
        answer_at = max(answer_at, time.monotonic() + limits.ANSWER - MAX_WAIT)
    token = _deferred.set(deferred)
    is_silent = False
    try:
        with limits.statements(limits.STATEMENT, answer_at=answer_at):
            try:
                return fn()
            except UNREACHABLE:
                is_silent = True
                raise
            finally:
                connections.close_all()
    finally:
        _deferred.reset(token)
        if not is_silent:
            _answered_at = time.monotonic()


_answered_at = 0.0  # time.monotonic() of the end of the last call that did not raise UNREACHABLE


def _schedule(loop: asyncio.AbstractEventLoop, deferred: list[Callable[[], object]]) -> None:
    """Hand the deferred calls of an ended call to a thread of their own; called in its thread."""
    if not deferred:
        return

    def call() -> None:
        _call([], None, partial(_call_all, deferred))

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
