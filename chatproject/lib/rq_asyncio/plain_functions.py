"""Plain functions (jobs and callbacks that are no coroutines) in threads, with time limits."""

from __future__ import annotations

import asyncio
import ctypes
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from django.conf import settings
from django.db import connections
from rq.timeouts import BaseDeathPenalty, BaseTimeoutException, JobTimeoutException

PLAIN_THREADS = 8  # plain functions at once; while all are busy no further job is dequeued

ExceptionType = type[BaseTimeoutException]


class Interrupted(BaseTimeoutException):
    """Raised in the thread of a plain function that is stopped or drained."""


class ThreadDeathPenalty(BaseDeathPenalty):
    """Ends a block of code in any thread by an exception: at its time limit, or by `interrupt`.

    RQ's TimerDeathPenalty writes its message into the exception class that all threads share, and
    may strike after the block has been left, that is, in the thread's next work. As with RQ's, a
    call that waits outside of Python's bytecode (a sleep, a socket) ends only when it returns.
    """

    def __init__(
        self, timeout: float, exception: ExceptionType = JobTimeoutException, **kwargs: Any
    ) -> None:
        super().__init__(timeout, exception, **kwargs)  # type: ignore[no-untyped-call]
        self._lock = threading.Lock()
        self._thread: int | None = None
        self._has_ended = False

        def init(error: BaseTimeoutException) -> None:
            Exception.__init__(error, timeout_message(timeout))

        # A thread can be sent a class only: this one has the exception's name and RQ's message.
        names = {"__module__": exception.__module__, "__init__": init}
        with_message = type(exception.__name__, (exception,), names)
        self._timer = threading.Timer(timeout, self.interrupt, [with_message])
        self._timer.daemon = True

    def setup_death_penalty(self) -> None:
        with self._lock:
            if self._has_ended:
                raise Interrupted
            self._thread = threading.get_ident()
        if self._timeout > 0:
            self._timer.start()

    def interrupt(self, exception: ExceptionType = Interrupted) -> None:
        """Raise in the block, or at its start if it has not begun; at most once."""
        with self._lock:
            if not self._has_ended:
                self._has_ended = True
                self._raise(exception)

    def cancel_death_penalty(self) -> None:
        self._timer.cancel()
        with self._lock:
            self._has_ended = True
            self._raise(None)  # revokes an exception that was sent but has not arrived

    def _raise(self, exception: ExceptionType | None) -> None:
        if self._thread is not None:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(
                ctypes.c_ulong(self._thread), exception and ctypes.py_object(exception)
            )


def timeout_message(seconds: float) -> str:
    """Return RQ's own message of a JobTimeoutException."""
    return f"Task exceeded maximum timeout value ({seconds} seconds)"


def in_thread(function: Callable[[], None]) -> asyncio.Future[None]:
    """Call a function, which must not raise, in a daemon thread that exit does not join.

    The thread closes its database connections. The future, of the running loop, is done when the
    function has returned.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[None] = loop.create_future()

    def resolve() -> None:
        if not future.done():
            future.set_result(None)

    def body() -> None:
        try:
            function()
        finally:
            if settings.configured:
                connections.close_all()
            with suppress(RuntimeError):  # the loop is closed: the worker has ended
                loop.call_soon_threadsafe(resolve)

    threading.Thread(target=body, daemon=True).start()
    return future
