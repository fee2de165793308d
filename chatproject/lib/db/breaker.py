"""Circuit breaker for Postgres: while it is silent, pages and commands fail at once.

Each of them would wait for its whole time limit, and the next ones would wait for its thread: a few
dozen requests to a process would get no answer in time. One caller at a time tries whether Postgres
answers again. Callers without a time for their answer (jobs, replies, the clock) are never refused.
"""

from __future__ import annotations

import time

# Seconds.
PAUSE = 1.0  # between the failure of a try and the next try
LONGEST_TRY = 8.0  # after which a try that has neither failed nor succeeded is no longer waited for
SILENCE = 3.0  # without any answer, after which a caller that got no connection counts as a failure

_answered_at = 0.0  # time.monotonic()
_try_at: float | None = None  # time.monotonic() of the next try; None: no failure since an answer


def note_answer() -> None:
    """Note that Postgres has answered a statement."""
    global _answered_at, _try_at
    _answered_at, _try_at = time.monotonic(), None


def note_silence() -> None:
    """Note that Postgres did not answer a statement, nor its cancellation."""
    global _try_at
    _try_at = time.monotonic() + PAUSE


def note_no_connection() -> None:
    """Note that a caller got no connection in time: a failure, unless others get answers."""
    if time.monotonic() - _answered_at > SILENCE:
        note_silence()


def may_try() -> bool:
    """Return whether a caller may use Postgres now; after a failure one caller at a time may."""
    global _try_at
    if _try_at is None:
        return True
    now = time.monotonic()
    if now < _try_at:
        return False
    _try_at = now + LONGEST_TRY
    return True
