"""What happens by the clock: `manage.py clock`, one process that outlives outages.

It sweeps runs itself, because a sweep that waits in a queue behind a full worker would be of no
use. Of several clocks one works, by an advisory lock in Postgres, and the others stand by.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import redis
from django.db import connection
from django.utils import timezone

from billing import schedule as billing_schedule
from chat.recovery.sweeper import Sweeper
from chat.runs import queue, wait_estimate
from chatproject.lib import db

logger = logging.getLogger(__name__)

# Any number will do, as long as nothing else in this database takes the same one.
LOCK = 4_705_118_221

TURN = 0.5  # seconds between looks at the schedule
STANDBY = 2.0  # seconds between tries to become the clock that works


@dataclass(slots=True)
class Task:
    """Something that is due every `every` seconds; `run` gets the time of the turn."""

    name: str
    every: float
    run: Callable[[datetime], None]
    due: datetime = field(default_factory=timezone.now)


def schedule() -> list[Task]:
    """Everything that happens by the clock."""
    return [
        Task("sweep runs", 1.0, Sweeper().sweep),
        Task("measure the pace", wait_estimate.EVERY, queue.publish_throughput),
        *(Task(*scheduled) for scheduled in billing_schedule.tasks()),
    ]


class Clock:
    """Runs the schedule until `stop` is set."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self._tasks = schedule()

    def run(self) -> None:
        """Work, or stand by for another clock, until `stop` is set."""
        while not self.stop.is_set():
            try:
                if _take_lock():
                    logger.info("the clock runs")
                    try:
                        self._work()
                    finally:
                        _drop_lock()
                else:
                    self.stop.wait(STANDBY)
            except db.UNREACHABLE as error:
                logger.warning("the clock waits for the database: %s", error)
                connection.close()
                self.stop.wait(STANDBY)
        connection.close()

    def _work(self) -> None:
        while not self.stop.is_set():
            now = timezone.now()
            for task in self._tasks:
                if task.due <= now:
                    task.due = now + timedelta(seconds=task.every)
                    self._run(task, now)
            if not _holds_lock():
                logger.warning("the clock lost its lock and stands by")
                return
            self.stop.wait(TURN)

    def _run(self, task: Task, now: datetime) -> None:
        try:
            task.run(now)
        except redis.RedisError as error:
            logger.warning("%s waits for Redis: %s", task.name, error)
        except db.UNREACHABLE:
            raise  # with the connection goes the lock
        except Exception:
            # One task's fault must not stop the others, nor itself at its next turn.
            logger.exception("%s failed", task.name)


def _take_lock() -> bool:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_try_advisory_lock(%s)", [LOCK])
        row = cursor.fetchone()
    return bool(row and row[0])


def _drop_lock() -> None:
    """Give the lock back: the connection goes back to a pool, and would take the lock with it."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_unlock(%s)", [LOCK])


def _holds_lock() -> bool:
    """Whether this session still has the lock: a connection that was replaced has not."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND granted"
            " AND pid = pg_backend_pid() AND classid = %s AND objid = %s)",
            [LOCK >> 32, LOCK & 0xFFFFFFFF],
        )
        row = cursor.fetchone()
    return bool(row and row[0])
