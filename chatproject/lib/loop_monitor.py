"""Whether the event loop of a process keeps up, and what held it up when it did not.

`start` sets a beat into the running loop and a thread beside it. The beat measures by how much it
comes too late; the thread, which a blocked loop does not stop, looks at what the loop's thread is
doing when a beat is overdue, and tells Redis of both every few seconds, for the staff's page:

    loops          hash; what each process said of its loop last
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
from typing import Any

import msgspec
import redis

from chatproject.lib.metrics import DELIVERY, LOOP_BLOCKS, LOOP_LAG
from chatproject.lib.redis.clients import sync_client

logger = logging.getLogger(__name__)

LOOPS = "loops"
BLOCKS = "loop:blocks"

# Seconds.
BEAT = 0.050
BLOCK = 0.100  # a loop that stands still for longer is said to be blocked
LOOK = 0.050  # how often the thread looks whether a beat is overdue
REPORT = 5.0
STALE = 3 * REPORT  # a process that has said nothing for so long has ended
BLOCKS_KEPT_SECONDS = 24 * 60 * 60

BLOCKS_KEPT = 100
DELIVERIES_KEPT = 500
LAGS_KEPT = 200  # beats, of which the figures are made: the last ten seconds

PROJECT = f"{Path(__file__).resolve().parents[2]}{os.sep}"
LIBRARIES = f"{os.sep}site-packages{os.sep}"


class Block(msgspec.Struct, frozen=True):
    """A moment in which a loop stood still. `at` is seconds since 1970.

    `task` names the asyncio task that ran and `where` the innermost function of this project, each
    as far as it was seen.
    """

    process: str
    role: str
    at: float
    milliseconds: float
    task: str
    where: str


class Loop(msgspec.Struct, frozen=True):
    """What a process says of its loop: times in milliseconds.

    Lags are those of the last ten seconds. Deliveries, of web processes, are the newest tokens' way
    from the worker's tick to the socket; None while there are none.
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


@dataclass(slots=True)
class _Seen:
    """What the thread saw while a beat was overdue."""

    task: str = ""
    where: str = ""


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
        self._seen = _Seen()
        self._observe = LOOP_LAG.labels(role).observe
        self._untold: deque[Block] = deque(maxlen=BLOCKS_KEPT)
        self._stopped = threading.Event()
        self._timer = loop.call_later(BEAT, self._beat)
        self._thread = threading.Thread(target=self._watch, name="loop monitor", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Watch no more; from the loop's thread."""
        self._timer.cancel()
        self._stopped.set()
        self._thread.join(timeout=2 * LOOK)  # a Redis that is away may hold it for longer

    def _beat(self) -> None:
        now = time.monotonic()
        lag = max(0.0, now - self._beat_at - BEAT)
        self._lags.append(lag)
        self._observe(lag)
        if lag > BLOCK:
            self._note(lag)
        self._seen = _Seen()
        self._beat_at = now
        self._timer = self._loop.call_later(BEAT, self._beat)

    def _note(self, lag: float) -> None:
        self.blocks += 1
        self._worst = max(self._worst, lag)
        LOOP_BLOCKS.labels(self.role).inc()
        block = Block(
            process=self.process,
            role=self.role,
            at=time.time(),
            milliseconds=round(1000 * lag, 1),
            task=self._seen.task,
            where=self._seen.where,
        )
        self._untold.append(block)
        logger.warning(
            "the event loop stood still for %.0f ms: %s in %s",
            block.milliseconds,
            block.task or "unknown",
            block.where or "unknown",
        )

    # --- In the thread ----------------------------------------------------------------------------

    def _watch(self) -> None:
        told_at = 0.0
        while not self._stopped.wait(LOOK):
            now = time.monotonic()
            if now - self._beat_at - BEAT > BLOCK / 2 and not self._seen.where:
                self._look()
            if now - told_at >= REPORT:
                told_at = now
                self._tell()

    def _look(self) -> None:
        frame = sys._current_frames().get(self._loop_thread)
        self._seen = _Seen(task=_task_of(self._loop), where=_where(frame))

    def _tell(self) -> None:
        """Write this loop's figures and its new blocks where the staff's page finds them."""
        untold = [self._untold.popleft() for _ in range(len(self._untold))]
        try:
            pipeline = sync_client().pipeline(transaction=False)
            pipeline.hset(LOOPS, self.process, msgspec.json.encode(self._figures()).decode())
            pipeline.expire(LOOPS, int(4 * STALE))
            if untold:
                pipeline.lpush(BLOCKS, *[msgspec.json.encode(block) for block in untold])
                pipeline.ltrim(BLOCKS, 0, BLOCKS_KEPT - 1)
                pipeline.expire(BLOCKS, BLOCKS_KEPT_SECONDS)
            pipeline.execute()
        except redis.RedisError as error:
            # Only the page misses them; the log and the counters have them.
            logger.debug("the figures of the loop wait for Redis: %s", error)
            self._untold.extendleft(reversed(untold))

    def _figures(self) -> Loop:
        lags = sorted(self._lags) or [0.0]
        return Loop(
            process=self.process,
            role=self.role,
            at=time.time(),
            blocks=self.blocks,
            worst=round(1000 * self._worst, 1),
            lag_p50=round(1000 * lags[len(lags) // 2], 1),
            lag_max=round(1000 * lags[-1], 1),
            delivery_p50=_part(0.50),
            delivery_p99=_part(0.99),
        )


_deliveries: deque[float] = deque(maxlen=DELIVERIES_KEPT)


def note_delivery(written: int) -> None:
    """Note that an event goes to its reader now; `written` is when its worker wrote it (ms)."""
    milliseconds = max(0.0, time.time() * 1000 - written)
    DELIVERY.observe(milliseconds / 1000)
    _deliveries.append(milliseconds)


def _part(share: float) -> float | None:
    """The delivery time that so large a share of the newest ones did not exceed."""
    newest = sorted(_deliveries)
    return round(newest[int(share * (len(newest) - 1))], 1) if newest else None


def _task_of(loop: asyncio.AbstractEventLoop) -> str:
    task = asyncio.current_task(loop)
    return task.get_name() if task is not None else ""


def _where(frame: FrameType | None) -> str:
    """The innermost function of this project on a stack, or just the innermost one."""
    innermost = ""
    while frame is not None:
        code = frame.f_code
        name = f"{code.co_filename.removeprefix(PROJECT)}:{frame.f_lineno} {code.co_qualname}"
        if code.co_filename.startswith(PROJECT) and LIBRARIES not in code.co_filename:
            return name
        innermost = innermost or name
        frame = frame.f_back
    return innermost


def start(role: str) -> LoopMonitor:
    """Watch the running event loop; `role` says what the process is: web, worker."""
    return LoopMonitor(role, asyncio.get_running_loop())


@dataclass(frozen=True, slots=True)
class Report:
    """The loops of all processes that live, and the newest blocks, newest first."""

    loops: list[Loop]
    blocks: list[Block]


def report() -> Report:
    """What all processes have said of their loops. Raises redis.RedisError."""
    pipeline = sync_client().pipeline(transaction=False)
    pipeline.hgetall(LOOPS)
    pipeline.lrange(BLOCKS, 0, BLOCKS_KEPT - 1)
    said: tuple[dict[bytes, bytes], list[bytes]] | Any = pipeline.execute()
    loops = [msgspec.json.decode(data, type=Loop) for data in said[0].values()]
    now = time.time()
    gone = [loop.process for loop in loops if now - loop.at > STALE]
    if gone:
        sync_client().hdel(LOOPS, *gone)
    return Report(
        loops=sorted(
            (loop for loop in loops if now - loop.at <= STALE),
            key=lambda loop: (loop.role, loop.process),
        ),
        blocks=[msgspec.json.decode(data, type=Block) for data in said[1]],
    )
