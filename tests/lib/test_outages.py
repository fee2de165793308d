"""Outages in the log: one line each, not too often; bugs keep their traceback."""

from __future__ import annotations

import io
import logging
import time
from collections.abc import Iterator

import psycopg
import pytest
import redis
from django.core.exceptions import (
    BadRequest,
    PermissionDenied,
    RequestDataTooBig,
    TooManyFieldsSent,
)
from django.db import OperationalError
from django.http.multipartparser import MultiPartParserError

from chatproject.lib import outages
from chatproject.lib.outages import OutageFilter, OutageFormatter


@pytest.fixture
def output() -> Iterator[io.StringIO]:
    """What a logger `web.test` writes through the handler that the settings describe."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(OutageFormatter("{levelname} {name}: {message}", style="{"))
    handler.addFilter(OutageFilter())
    names = ("web.test", "web.other", outages.POOL)
    for name in names:
        logging.getLogger(name).addHandler(handler)
    yield stream
    for name in names:
        logging.getLogger(name).removeHandler(handler)


logger = logging.getLogger("web.test")


def report(error: Exception) -> None:
    """Log an exception as Django does that of a page."""
    try:
        raise error
    except Exception:
        logger.exception("Internal Server Error: %s", "/chats/")


@pytest.mark.parametrize(
    "error",
    [
        OperationalError("the connection\nis lost"),
        psycopg.OperationalError("the connection\nis lost"),
        redis.ConnectionError("the connection\nis lost"),
        redis.TimeoutError("the connection\nis lost"),
    ],
)
def test_outage_is_one_line_without_traceback(output, error):
    report(error)
    line = "WARNING web.test: Internal Server Error: /chats/: the connection is lost\n"
    assert output.getvalue() == line


@pytest.mark.parametrize(
    "error", [ValueError("broken"), redis.ResponseError("broken"), TimeoutError("broken")]
)
def test_bug_keeps_its_traceback_each_time(output, error):
    for _ in range(3):
        report(error)
    assert output.getvalue().count("Traceback") == 3
    assert output.getvalue().count("ERROR web.test: Internal Server Error: /chats/\n") == 3


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RequestDataTooBig("too\nlarge"), ": too large"),
        (TooManyFieldsSent("too many"), ": too many"),
        (MultiPartParserError("no boundary"), ": no boundary"),
        (BadRequest("/chats/"), ""),
        (PermissionDenied(), ""),
    ],
)
def test_refused_request_is_one_line_without_traceback(output, error, reason):
    report(error)
    assert output.getvalue() == f"ERROR web.test: Internal Server Error: /chats/{reason}\n"


def test_repeated_outage_is_counted_by_logger(output, monkeypatch):
    for _ in range(100):
        report(OperationalError("lost"))
        logger.warning("a socket waits: %s", OperationalError("lost"))
        logging.getLogger("web.other").warning("a run waits: %s", redis.ConnectionError("lost"))
        logging.getLogger(outages.POOL).warning("discarding closed connection")
        logger.warning("nothing of the kind")
    lines = output.getvalue().splitlines()
    assert len([line for line in lines if "lost" in line]) == 2
    assert len([line for line in lines if "discarding" in line]) == 1
    assert len([line for line in lines if "nothing" in line]) == 100
    monkeypatch.setattr(time, "monotonic", lambda: 10.0**9)
    report(OperationalError("lost"))
    assert output.getvalue().endswith("/chats/: lost (199 like it before)\n")
