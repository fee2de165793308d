"""What nobody waits for is done when the caller has its answer."""

from __future__ import annotations

import asyncio
import threading

import pytest

from chatproject.lib import db
from chatproject.lib.db import threads

pytestmark = pytest.mark.django_db(transaction=True)


async def test_news_are_told_after_the_answer():
    loop = asyncio.get_running_loop()
    told = loop.create_future()
    go_on = threading.Event()

    def tell() -> None:
        go_on.wait(10)
        loop.call_soon_threadsafe(told.set_result, "news")

    def work() -> str:
        db.after_response(tell)
        return "answer"

    # Were the answer to wait for the news, it would come too late to let them go.
    assert await db.run(work) == "answer"
    assert not told.done()
    go_on.set()
    assert await asyncio.wait_for(told, 10) == "news"


async def test_news_that_fail_do_not_keep_others_back(caplog):
    loop = asyncio.get_running_loop()
    told = loop.create_future()

    def work() -> None:
        db.after_response(lambda: 1 / 0)
        db.after_response(lambda: loop.call_soon_threadsafe(told.set_result, "news"))

    await db.run(work)
    assert await asyncio.wait_for(told, 10) == "news"
    assert "a deferred call failed" in caplog.text


async def test_news_are_not_lost_when_the_loop_ends():
    told: list[str] = []
    await db.run(lambda: db.after_response(told.append, "news"))
    await asyncio.sleep(0)  # the loop hears of it
    await db.run_deferred()
    assert told == ["news"]
    await asyncio.sleep(2 * threads.DEFERRED_AFTER)
    assert told == ["news"]


def test_outside_of_run_they_are_told_at_once():
    told: list[str] = []
    db.after_response(told.append, "news")
    assert told == ["news"]
