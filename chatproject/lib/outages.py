"""Outages of Postgres and Redis: their exceptions, and their lines in the log.

An outage is no bug: each logger reports it in one line without a traceback, and at most every
REPEAT_SECONDS, however many calls fail. Nor is a request that Django refuses: it is one line, too.
"""

from __future__ import annotations

import copy
import logging
import threading
import time

import redis
from django.core.exceptions import BadRequest, PermissionDenied, SuspiciousOperation
from django.http.multipartparser import MultiPartParserError
from psycopg import OperationalError

from chatproject.lib import db
from chatproject.lib.log_scrubbing import ScrubbingFormatter
from chatproject.lib.redis import UNREACHABLE as REDIS_UNREACHABLE

UNREACHABLE = (redis.RedisError, *db.UNREACHABLE)
"""Raised by a call while Postgres or Redis is unreachable, or refuses."""

# Without the errors of a Redis that answers, which are bugs: their traceback is wanted.
OUTAGES = (*REDIS_UNREACHABLE, *db.UNREACHABLE, OperationalError)

# Of requests that Django answers with 400 or 403: too large, malformed, not permitted.
REFUSED_REQUESTS = (BadRequest, MultiPartParserError, PermissionDenied, SuspiciousOperation)

POOL = "psycopg.pool"  # a logger that reports only lost connections and failed attempts

REPEAT_SECONDS = 10.0
MAX_REASON = 200  # characters


def outage_of(record: logging.LogRecord) -> BaseException | None:
    """Return the exception of an outage that a record reports, as its exception or as an argument."""
    if record.exc_info and isinstance(record.exc_info[1], OUTAGES):
        return record.exc_info[1]
    arguments = record.args if isinstance(record.args, tuple) else ()
    # A time limit of asyncio's is an OSError.
    found = (one for one in arguments if isinstance(one, (*OUTAGES, OSError)))
    return next(found, None)


class OutageFilter(logging.Filter):
    """Drops a logger's repeated reports of outages, and counts them in `record.dropped`."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()
        self._next: dict[str, float] = {}  # by logger
        self._dropped: dict[str, int] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.name != POOL and outage_of(record) is None:
            return True
        now = time.monotonic()
        with self._lock:
            if now < self._next.get(record.name, 0.0):
                self._dropped[record.name] = self._dropped.get(record.name, 0) + 1
                return False
            self._next[record.name] = now + REPEAT_SECONDS
            record.dropped = self._dropped.pop(record.name, 0)
        return True


def condense(record: logging.LogRecord) -> logging.LogRecord:
    """Return the report of an outage or a refused request as one line without its traceback.

    Any other record is returned unchanged.
    """
    error = outage_of(record)
    if error is not None:
        record = copy.copy(record)
        message = record.getMessage()
        if record.exc_info:
            message = f"{message}: {error}"
        message = " ".join(message.split())[: MAX_REASON + len(str(record.msg))]
        dropped = getattr(record, "dropped", 0)
        record.msg = f"{message} ({dropped} like it before)" if dropped else message
        record.args = record.exc_info = record.exc_text = None
        record.levelno, record.levelname = logging.WARNING, "WARNING"
    elif record.exc_info and isinstance(record.exc_info[1], REFUSED_REQUESTS):
        reason = str(record.exc_info[1])
        record = copy.copy(record)
        message = record.getMessage()
        record.msg = " ".join((message if reason in message else f"{message}: {reason}").split())
        record.args = record.exc_info = record.exc_text = None
    return record


class OutageFormatter(ScrubbingFormatter):
    """Writes the report of an outage or a refused request in one line without its traceback, and no secret.

    The fields of a business event follow its name, as `name=value`.
    """

    def format(self, record: logging.LogRecord) -> str:
        record = condense(record)
        if fields := getattr(record, "fields", None):
            record = copy.copy(record)
            shown = (f"{name}={value}" for name, value in fields.items() if value not in ("", None))
            record.msg, record.args = " ".join([record.getMessage(), *shown]), None
        return super().format(record)
