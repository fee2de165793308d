"""Time limits of statements, kept by the client.

The server's own limits (`statement_timeout`) do not help while the network is silent, and a setting of
the session cannot be used behind a pooler with transaction pooling. So each wait for Postgres ends
here: the statement is cancelled, and the connection is closed unless Postgres confirms that.

Outside of `statements` there is no limit in commands such as `migrate`, where TCP's own (settings.py)
still end a statement when the network is lost; workers and the clock set `default`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any, Self, TypeVar

import psycopg
from psycopg import errors
from psycopg.abc import PQGen
from psycopg_pool import ConnectionPool

from chatproject.lib.db import breaker, pooler

# Seconds.
STATEMENT = 5.0  # for one statement of a page, a socket's command, a reply, or the clock
JOB_STATEMENT = 30.0  # of a job that no user waits for
LONG_STATEMENT = 3_600.0  # of a check of the whole ledger, or a roll-up
ANSWER = 9.5  # for everything that a page or a command does until its answer
CANCEL = 1.0  # for cancelling a late statement, and again for the server's confirmation
CANCEL_REQUEST = 60.0  # after which the request itself is given up
LEAST = 1.0  # that a statement gets when the time for the answer is used up: a ROLLBACK needs some

T = TypeVar("T")

default: float | None = None
"""Seconds for each statement of this process outside of `statements`; None: no limit."""

_statement: ContextVar[float | None] = ContextVar("statement")
_answer_at: ContextVar[float | None] = ContextVar("answer_at", default=None)


@contextmanager
def statements(seconds: float | None, *, answer_at: float | None = None) -> Iterator[None]:
    """Limit each statement of the block or function (None: no limit).

    With `answer_at` (time.monotonic()) the later statements of the block get less, so that an answer
    can be given until then.
    """
    statement, answer = _statement.set(seconds), _answer_at.set(answer_at)
    try:
        yield
    finally:
        _statement.reset(statement)
        _answer_at.reset(answer)


@contextmanager
def page() -> Iterator[None]:
    """Limit the statements of a request whose answer is due in ANSWER seconds."""
    with statements(STATEMENT, answer_at=time.monotonic() + ANSWER):
        yield


def time_left() -> float | None:
    """Return the seconds until the answer of the enclosing block is due; None without a limit."""
    answer_at = _answer_at.get()
    return None if answer_at is None else answer_at - time.monotonic()


def statement_limit() -> float | None:
    """Return the seconds that the next statement may take; None without a limit."""
    seconds, left = _statement.get(default), time_left()
    if seconds is None or left is None:
        return seconds
    return max(LEAST, min(seconds, left - 2 * CANCEL))


class Connection(psycopg.Connection[Any]):
    """A connection that does not wait longer than the limit of the enclosing block."""

    # Of a connection that the pool has not lent: its workers set new ones up without any block.
    idle_limit: float | None = STATEMENT

    lent_at: float = 0.0  # time.monotonic() at which the pool lent it last

    @classmethod
    def connect(cls, conninfo: str = "", **options: Any) -> Self:
        connection = super().connect(conninfo, **options)
        try:
            pooler.adapt(connection)
            connection.rollback()  # outside of autocommit a transaction has begun
        except psycopg.Error:
            connection.close()
            raise
        return connection

    def wait(self, gen: PQGen[T], interval: float = 0.1, timeout: float | None = None) -> T:
        """Return what psycopg's generator returns.

        Raises QueryCanceled for a statement that was cancelled, and OperationalError when Postgres
        did not even answer that; the connection is closed then.
        """
        limit = statement_limit() or self.idle_limit
        if limit is None or timeout is not None:
            return super().wait(gen, interval, timeout)
        try:
            result = super().wait(gen, interval, limit)
        except errors._WaitTimeout:
            pass
        else:
            breaker.note_answer()
            return result
        # The request outlives the wait for it: PgBouncer ends when the connection of a cancel request is
        # closed while Postgres is silent (https://github.com/pgbouncer/pgbouncer/issues/801).
        cancelling = threading.Thread(target=self._cancel, name="cancel", daemon=True)
        cancelling.start()
        cancelling.join(CANCEL)
        try:
            if cancelling.is_alive():
                raise errors.CancellationTimeout
            return super().wait(gen, interval, CANCEL)
        except errors.QueryCanceled:
            breaker.note_answer()
            raise errors.QueryCanceled(f"cancelled after {limit:.1f} s") from None
        except psycopg.Error:
            self.close()
            breaker.note_silence()
            # The idle connections of the pool lead to the same server, most likely as silently.
            pool: ConnectionPool[Any] | None = getattr(self, "_pool", None)
            if pool is not None:
                pool.drain()
            raise errors.OperationalError(f"no answer within {limit:.1f} s") from None

    def _cancel(self) -> None:
        with suppress(psycopg.Error):  # then the statement is not cancelled, which `wait` finds
            self.cancel_safe(timeout=CANCEL_REQUEST)
