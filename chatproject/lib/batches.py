"""Batches of rows in which one bad row does not stop the others."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta

import redis

from chatproject.lib import db

logger = logging.getLogger(__name__)

# Redis refuses these for the whole service, and other commands that it answers for their own sake.
REDIS_IS_FULL = (redis.ReadOnlyError, redis.OutOfMemoryError)

FIRST_PAUSE = timedelta(seconds=10)  # after an error, doubled with each further one
MAX_PAUSE = timedelta(minutes=10)


@contextmanager
def apart(what: str) -> Iterator[None]:
    """Process one row: an error is logged with its name, so that the batch goes on.

    Raises only what concerns all rows: that Postgres or Redis is unreachable.
    """
    try:
        yield
    except Exception as error:
        raise_outage(error)
        if isinstance(error, db.MoneyBusy):
            logger.warning("%s is left to the next turn: %s", what, error)
        else:
            logger.exception("%s failed and is left to the next turn", what)


def raise_outage(error: Exception) -> None:
    """Raise an error that concerns all rows again; return for one of a single row."""
    if isinstance(error, db.MoneyBusy):
        return
    is_answer = isinstance(error, redis.ResponseError) and not isinstance(error, REDIS_IS_FULL)
    if isinstance(error, (redis.RedisError, *db.UNREACHABLE)) and not is_answer:
        raise error


class SetAside:
    """Rows whose processing failed: each error is logged once, and each row waits longer each time.

    In memory: another process tries them at once.
    """

    def __init__(self) -> None:
        self._waiting: dict[Hashable, tuple[datetime, timedelta]] = {}  # due when, and the pause
        self._logged: dict[Hashable, str] = {}

    @property
    def count(self) -> int:
        """How many rows are set aside."""
        return len(self._waiting)

    def is_due(self, row: Hashable, now: datetime) -> bool:
        """Return whether a row may be processed now."""
        return row not in self._waiting or self._waiting[row][0] <= now

    @contextmanager
    def apart(self, row: Hashable, what: str, now: datetime) -> Iterator[None]:
        """Process one row. Raises only what concerns all rows, as `apart` does."""
        try:
            yield
        except Exception as error:
            raise_outage(error)
            _, last = self._waiting.get(row, (now, FIRST_PAUSE / 2))
            pause = min(2 * last, MAX_PAUSE)
            self._waiting[row] = (now + pause, pause)
            text = f"{type(error).__name__}: {error}"
            if self._logged.get(row) != text:
                self._logged[row] = text
                is_bug = not isinstance(error, db.MoneyBusy)
                logger.warning("%s is set aside: %s", what, text, exc_info=is_bug)
        else:
            self._waiting.pop(row, None)
            self._logged.pop(row, None)

    def forget_others(self, rows: set[Hashable]) -> None:
        """Forget all but these rows."""
        for row in self._waiting.keys() - rows:
            del self._waiting[row]
            self._logged.pop(row, None)
