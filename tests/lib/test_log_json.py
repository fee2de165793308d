"""Logs in JSON: one object per line, with ids and fields, and without secrets."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import Iterator
from contextvars import copy_context
from typing import Any

import pytest
from django.db import OperationalError

from chatproject.lib import db, log_context
from chatproject.lib.log_events import log_event
from chatproject.lib.log_json import JSONFormatter
from chatproject.lib.outages import OutageFilter

logger = logging.getLogger("web.json")


class Lines:
    """The lines that were written, each as an object."""

    def __init__(self) -> None:
        self.stream = io.StringIO()

    def all(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.stream.getvalue().splitlines()]

    def one(self) -> dict[str, Any]:
        [line] = self.all()
        return line


@pytest.fixture
def lines() -> Iterator[Lines]:
    found = Lines()
    handler = logging.StreamHandler(found.stream)
    handler.setFormatter(JSONFormatter())
    handler.addFilter(OutageFilter())
    loggers = (logger, logging.getLogger("parley.events"))
    for one in loggers:
        one.addHandler(handler)
        one.setLevel(logging.DEBUG)
    yield found
    for one in loggers:
        one.removeHandler(handler)
        one.setLevel(logging.NOTSET)


def test_line_has_time_level_and_logger(lines):
    logger.warning("%d of %s\nsecond line \N{SNOWMAN}", 7, "nine")
    line = lines.one()
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": "7 of nine\nsecond line \N{SNOWMAN}",
        "level": "warning",
        "logger": "web.json",
    }


def test_traceback_is_one_scrubbed_field(lines):
    try:
        raise ValueError("Bearer s3cr3t-token-123")
    except ValueError:
        logger.exception("it failed")
    line = lines.one()
    assert line["exception"].startswith("Traceback")
    assert line["exception"].endswith("ValueError: Bearer [key]")
    assert "s3cr3t" not in lines.stream.getvalue()


def test_outage_has_no_traceback(lines):
    for _ in range(3):
        try:
            raise OperationalError("lost\nconnection")
        except OperationalError:
            logger.exception("it failed")
    line = lines.one()
    assert (line["event"], line["level"]) == ("it failed: lost connection", "warning")
    assert "exception" not in line


def test_event_has_fields_and_bound_ids(lines):
    def log() -> None:
        log_context.begin(request_id="r1", user_id=7)
        log_event("run_ended", user_id=8, outcome="done", text="x@example.org", cost=None)

    copy_context().run(log)
    line = lines.one()
    assert (line["event"], line["request_id"], line["user_id"]) == ("run_ended", "r1", 8)
    assert (line["outcome"], line["text"], line["cost"]) == ("done", "[address]", None)


def test_scrubbed_link_keeps_the_object_whole(lines):
    logger.info("Not Found: /accounts/confirm-email/s3cr3t-key-of-a-link/")
    assert lines.one()["event"] == "Not Found: /accounts/confirm-email/[key]"


async def test_ids_reach_database_threads_and_return(lines):
    """A view's thread binds the user, and the line that is written afterwards has it."""
    log_context.begin(request_id="r2")

    def work() -> None:
        log_context.bind(user_id=9)
        logger.info("in the thread")

    await db.run(work)
    await asyncio.create_task(asyncio.to_thread(logger.info, "in another"))
    logger.info("after it")
    assert [(line["request_id"], line["user_id"]) for line in lines.all()] == [("r2", 9)] * 3


async def test_contexts_of_two_requests_are_apart(lines):
    async def request(name: str) -> None:
        log_context.begin(request_id=name)
        await asyncio.sleep(0)
        log_context.bind(user_id=name)
        await asyncio.sleep(0)
        logger.info(name)

    await asyncio.gather(*(asyncio.create_task(request(name)) for name in ("a", "b", "c")))
    logger.info("none")
    found = [(line["event"], line.get("request_id"), line.get("user_id")) for line in lines.all()]
    assert found == [("a", "a", "a"), ("b", "b", "b"), ("c", "c", "c"), ("none", None, None)]


def test_job_carries_request_and_user_alone():
    def work() -> dict[str, Any]:
        log_context.begin(request_id="r3", user_id=1, run_id="x")
        return log_context.carried()

    meta = copy_context().run(work)
    assert meta == {"log": {"request_id": "r3", "user_id": 1}}
    assert copy_context().run(log_context.carried) == {}

    def job() -> dict[str, Any]:
        log_context.begin_job(meta)
        return log_context.ids()

    assert copy_context().run(job) == meta["log"]
