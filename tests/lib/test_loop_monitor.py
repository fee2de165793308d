"""A blocked event loop is measured, and reported to staff with the blocking line."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import msgspec
import pytest

from chatproject.lib import loop_monitor
from chatproject.lib.loop_monitor import LoopMonitor

pytestmark = pytest.mark.usefixtures("valkey_url")


@pytest.fixture
async def monitor() -> AsyncIterator[LoopMonitor]:
    monitor = loop_monitor.start("test")
    yield monitor
    monitor.stop()


def stand_still() -> None:
    """Block for longer than any coroutine should."""
    end = time.monotonic() + 0.4
    while time.monotonic() < end:
        pass


async def test_block_is_reported_with_task_and_line(monitor, caplog):
    async def careless() -> None:
        stand_still()

    await asyncio.sleep(0.05)
    await asyncio.create_task(careless(), name="careless")
    await asyncio.sleep(0.05)
    assert monitor.blocks >= 1
    monitor._report()
    report = loop_monitor.report()
    block = next(block for block in report.blocks if block.task == "careless")
    assert block.milliseconds > 100
    assert block.where.endswith("stand_still")
    assert "tests/lib/test_loop_monitor.py" in block.where
    mine = next(loop for loop in report.loops if loop.process == monitor.process)
    assert (mine.role, mine.blocks) == ("test", monitor.blocks)
    assert mine.worst >= block.milliseconds > 0
    assert "was blocked" in caplog.text


async def test_waiting_loop_is_not_blocked(monitor):
    before = monitor.blocks
    monitor._lags.clear()
    await asyncio.sleep(0.2)
    assert monitor._lags
    assert monitor.blocks - before <= sum(lag > loop_monitor.BLOCK for lag in monitor._lags)


async def test_keys_of_the_report_expire(monitor, valkey_client):
    monitor._record_block(0.2)
    monitor._report()
    for key in (loop_monitor.LOOPS, loop_monitor.BLOCKS):
        assert valkey_client.ttl(key) > 0


async def test_silent_process_leaves_the_report(monitor, valkey_client):
    monitor._report()
    figures = {"at": 1.0, "blocks": 0, "worst": 0.0, "lag_p50": 0.0, "lag_max": 0.0}
    ended = msgspec.json.encode({"process": "gone:1", "role": "web", **figures})
    valkey_client.hset(loop_monitor.LOOPS, "gone:1", ended)
    assert [loop.process for loop in loop_monitor.report().loops] == [monitor.process]
    assert not valkey_client.hexists(loop_monitor.LOOPS, "gone:1")


async def test_delivery_times_are_reported(monitor):
    for milliseconds in (10, 20, 400):
        loop_monitor.note_delivery(int(time.time() * 1000) - milliseconds)
    monitor._report()
    (mine,) = loop_monitor.report().loops
    assert mine.delivery_p50 is not None
    assert mine.delivery_p99 is not None
    assert 10 <= mine.delivery_p50 <= mine.delivery_p99
