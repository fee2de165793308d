"""Measures whether the event loop of a process keeps up, and finds the code that blocks it.

`start` schedules a beat in the running loop and starts a thread. The beat measures its own lag. The
thread, which a blocked loop does not stop, samples the stack of the loop's thread while a beat is
overdue, and every few seconds writes the results to Redis, for the staff's live queue:

    loops          hash; the last report of each process
    loop:blocks    list; the newest blocks of all processes
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
import threading
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import msgspec
import redis

from chatproject.lib.metrics import DELIVERY, LOOP_BLOCKS, LOOP_LAG
from chatproject.lib.redis.clients import sync_client

logger = logging.getLogger(__name__)

LOOPS = "loops"
BLOCKS = "loop:blocks"

# Seconds.
BEAT = 0.050
BLOCK = 0.100  # a longer lag counts as a block
CHECK = 0.050  # between the thread's checks for an overdue beat
REPORT = 5.0
STALE = 3 * REPORT  # a process without a report for this long has ended
BLOCKS_KEPT_SECONDS = 24 * 60 * 60

BLOCKS_KEPT = 100
DELIVERIES_KEPT = 500
LAGS_KEPT = 200  # one per beat: the last ten seconds

PROJECT = f"{Path(__file__).resolve().parents[2]}{os.sep}"
LIBRARIES = f"{os.sep}site-packages{os.sep}"


class Block(msgspec.Struct, frozen=True):
    """A block of an event loop. `at` is its end, in seconds since 1970.

    `task` names the asyncio task that ran and `where` the innermost function of this project; empty
    when the thread took no sample.
    """

    process: str
    role: str
    at: float
    milliseconds: float
    task: str
    where: str


class Loop(msgspec.Struct, frozen=True):
    """The report of a process on its event loop; all times are in milliseconds.

    Lags cover the last ten seconds. Delivery times (web processes only) are measured from the
    worker's tick to the socket, for the newest events; None without any.
    """

    process: str
    role: str
    at: float
    blocks: int
    worst: float
    lag_p50: float
    lag_max: float
    delivery_p50: float | None = None
    delivery_p99: float | None = None


class LoopMonitor:
    """The beat of one loop and the thread that watches it."""

    def __init__(self, role: str, loop: asyncio.AbstractEventLoop) -> None:
        self.role = role
        self.process = f"{socket.gethostname()}:{os.getpid()}"
        self.blocks = 0
        self._loop = loop
        self._loop_thread = threading.get_ident()
        self._beat_at = time.monotonic()
        self._lags: deque[float] = deque(maxlen=LAGS_KEPT)
        self._worst = 0.0
        self._sample = ("", "")  # task and function, since the last beat
        self._observe = LOOP_LAG.labels(role).observe
        self._pending: deque[Block] = deque(maxlen=BLOCKS_KEPT)
        self._stopped = threading.Event()
        self._timer = loop.call_later(BEAT, self._beat)
        self._thread = threading.Thread(target=self._watch, name="loop monitor", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop the beat and the thread; call it from the loop's thread."""
        self._timer.cancel()
        self._stopped.set()
        self._thread.join(timeout=2 * CHECK)  # an unreachable Redis may block it for longer

    def _beat(self) -> None:
        now = time.monotonic()
        lag = max(0.0, now - self._beat_at - BEAT)
        self._lags.append(lag)
        self._observe(lag)
        if lag > BLOCK:
            self._record_block(lag)
        self._sample = ("", "")
        self._beat_at = now
        self._timer = self._loop.call_later(BEAT, self._beat)

    def _record_block(self, lag: float) -> None:
        task, where = self._sample
        self.blocks += 1
        self._worst = max(self._worst, lag)
        LOOP_BLOCKS.labels(self.role).inc()
        block = Block(
            process=self.process,
            role=self.role,
            at=time.time(),
            milliseconds=round(1000 * lag, 1),
            task=task,
            where=where,
        )
        self._pending.append(block)
        logger.warning(
            "the event loop was blocked for %.0f ms: %s in %s",
            block.milliseconds,
            task or "unknown",
            where or "unknown",
        )

    # --- In the thread ----------------------------------------------------------------------------

    def _watch(self) -> None:
        reported_at = 0.0
        while not self._stopped.wait(CHECK):
            now = time.monotonic()
            _, where = self._sample
            if now - self._beat_at - BEAT > BLOCK / 2 and not where:
                task = asyncio.current_task(self._loop)
                frame = sys._current_frames().get(self._loop_thread)
                self._sample = (task.get_name() if task else "", innermost_function(frame))
            if now - reported_at >= REPORT:
                reported_at = now
                self._report()

    def _report(self) -> None:
        """Write the loop's figures and the pending blocks to Redis."""
        pending = [self._pending.popleft() for _ in range(len(self._pending))]
        try:
            pipeline = sync_client().pipeline(transaction=False)
            pipeline.hset(LOOPS, self.process, msgspec.json.encode(self._figures()).decode())
            pipeline.expire(LOOPS, int(4 * STALE))
            if pending:
                pipeline.lpush(BLOCKS, *[msgspec.json.encode(block) for block in pending])
                pipeline.ltrim(BLOCKS, 0, BLOCKS_KEPT - 1)
                pipeline.expire(BLOCKS, BLOCKS_KEPT_SECONDS)
            pipeline.execute()
        except redis.RedisError as error:
            # Only the live queue lacks them; the log and the counters have them.
            logger.debug("the report of the event loop waits for Redis: %s", error)
            self._pending.extendleft(reversed(pending))

    def _figures(self) -> Loop:
        lags = sorted(self._lags) or [0.0]
        deliveries = sorted(_deliveries)
        p50, p99 = (
            round(deliveries[int(share * (len(deliveries) - 1))], 1) if deliveries else None
            for share in (0.50, 0.99)
        )
        return Loop(
            process=self.process,
            role=self.role,
            at=time.time(),
            blocks=self.blocks,
            worst=round(1000 * self._worst, 1),
            lag_p50=round(1000 * lags[len(lags) // 2], 1),
            lag_max=round(1000 * lags[-1], 1),
            delivery_p50=p50,
            delivery_p99=p99,
        )


def innermost_function(frame: FrameType | None) -> str:
    """Return the innermost function of this project on a stack, else the innermost of all.

    Its form is `file:line name`; empty for None.
    """
    innermost = ""
    while frame is not None:
        code = frame.f_code
        name = f"{code.co_filename.removeprefix(PROJECT)}:{frame.f_lineno} {code.co_qualname}"
        if code.co_filename.startswith(PROJECT) and LIBRARIES not in code.co_filename:
            return name
        innermost = innermost or name
        frame = frame.f_back
    return innermost


_deliveries: deque[float] = deque(maxlen=DELIVERIES_KEPT)


def note_delivery(written: int) -> None:
    """Record that an event is being sent to its socket now.

    `written` is the time in milliseconds since 1970 at which its worker wrote it.
    """
    milliseconds = max(0.0, time.time() * 1000 - written)
    DELIVERY.observe(milliseconds / 1000)
    _deliveries.append(milliseconds)


def start(role: str) -> LoopMonitor:
    """Watch the running event loop; `role` is the kind of the process: web or worker."""
    return LoopMonitor(role, asyncio.get_running_loop())


@dataclass(frozen=True, slots=True)
class Report:
    """The loops of all running processes by role, and the newest blocks, newest first."""

    loops: list[Loop]
    blocks: list[Block]


def report() -> Report:
    """Return the reports of all processes. Raises redis.RedisError."""
    pipeline = sync_client().pipeline(transaction=False)
    pipeline.hgetall(LOOPS)
    pipeline.lrange(BLOCKS, 0, BLOCKS_KEPT - 1)
    reported, blocks = pipeline.execute()
    loops = [msgspec.json.decode(data, type=Loop) for data in reported.values()]
    oldest = time.time() - STALE
    if ended := [loop.process for loop in loops if loop.at < oldest]:
        sync_client().hdel(LOOPS, *ended)
    running = [loop for loop in loops if loop.at >= oldest]
    return Report(
        loops=sorted(running, key=lambda loop: (loop.role, loop.process)),
        blocks=[msgspec.json.decode(data, type=Block) for data in blocks],
    )
