"""Work that no caller waits for is done after the response."""

from __future__ import annotations

import asyncio
import threading

import pytest

from chatproject.lib import db
from chatproject.lib.db import threads

pytestmark = pytest.mark.django_db(transaction=True)


async def test_later_work_does_not_delay_the_response():
    loop = asyncio.get_running_loop()
    published = loop.create_future()
    go_on = threading.Event()

    def publish() -> None:
        go_on.wait(10)
        loop.call_soon_threadsafe(published.set_result, "news")

    def work() -> str:
        db.after_response(publish)
        return "answer"

    # A response that waited for the work would come too late to let it go on.
    assert await db.run(work) == "answer"
    assert not published.done()
    go_on.set()
    assert await asyncio.wait_for(published, 10) == "news"


async def test_failing_work_does_not_stop_other_work(caplog):
    loop = asyncio.get_running_loop()
    published = loop.create_future()

    def work() -> None:
        db.after_response(lambda: 1 / 0)
        db.after_response(lambda: loop.call_soon_threadsafe(published.set_result, "news"))

    await db.run(work)
    assert await asyncio.wait_for(published, 10) == "news"
    assert "a deferred call failed" in caplog.text


async def test_pending_work_is_done_before_the_end():
    published: list[str] = []
    await db.run(lambda: db.after_response(published.append, "news"))
    await asyncio.sleep(0)  # the loop schedules it
    await db.run_deferred()
    assert published == ["news"]
    await asyncio.sleep(2 * threads.DEFERRED_AFTER)
    assert published == ["news"]


def test_work_outside_of_run_is_done_immediately():
    published: list[str] = []
    db.after_response(published.append, "news")
    assert published == ["news"]
