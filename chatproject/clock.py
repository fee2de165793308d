"""The clock: `manage.py clock`, one process that runs the periodic tasks and survives outages.

It sweeps runs itself: a sweep queued behind a full worker would come too late. Of several clocks one
works (leader election by an advisory lock in Postgres), and the others stand by.
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

from accounts import sessions, signup
from billing import schedule as billing_schedule
from chat.recovery.retention import Retention
from chat.recovery.sweeper import Sweeper
from chat.runs import queue, wait_estimate
from chatproject.lib import db
from chatproject.lib.db import limits, prepared
from chatproject.lib.mail import outbox

logger = logging.getLogger(__name__)

# Any number serves that no other advisory lock of this database uses.
LOCK = 4_705_118_221

# Has Postgres end the session, and with it the lock, about 20 seconds after this process was lost
# without a word. Its default is two hours.
KEEPALIVE = (
    "SELECT set_config('tcp_keepalives_idle', '10', false),"
    " set_config('tcp_keepalives_interval', '3', false),"
    " set_config('tcp_keepalives_count', '3', false)"
)

TURN = 0.5  # seconds between checks of the schedule
STANDBY = 2.0  # seconds between attempts to become the clock that works


@dataclass(slots=True)
class Task:
    """A periodic task: `run` is due every `every` seconds and receives the time of the turn."""

    name: str
    every: float
    run: Callable[[datetime], object]
    due: datetime = field(default_factory=timezone.now)


def schedule() -> list[Task]:
    """Return all periodic tasks."""
    return [
        Task("sweep runs", 1.0, Sweeper().sweep),
        Task("measure the throughput", wait_estimate.EVERY, queue.publish_throughput),
        Task("send mail", 5.0, outbox.enqueue_due),
        Task("clear mail", 600, outbox.clear),
        Task("grant sign-up credits", 60, signup.grant_lost),
        Task("purge deleted chats", 60, Retention().purge),
        Task("clear sessions", 60, sessions.clear_expired),
        *(Task(*scheduled) for scheduled in billing_schedule.tasks()),
    ]


class Clock:
    """Runs the schedule until `stop` is set."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self._tasks = schedule()

    def run(self) -> None:
        """Work, or stand by for another clock, until `stop` is set."""
        with limits.statements(limits.STATEMENT):
            self._run_until_stop()

    def _run_until_stop(self) -> None:
        while not self.stop.is_set():
            try:
                [(is_leader,)] = prepared.all("SELECT pg_try_advisory_lock(%s)", [LOCK])
                if is_leader:
                    logger.info("the clock runs")
                    prepared.all(KEEPALIVE, ())
                    try:
                        self._work()
                    finally:
                        # The connection returns to a pool, which would keep the lock along with it.
                        prepared.all("SELECT pg_advisory_unlock(%s)", [LOCK])
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
            # Django may have replaced a broken connection: the lock was lost with its session.
            [(has_lock,)] = prepared.all(
                "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND granted"
                " AND pid = pg_backend_pid() AND classid = %s AND objid = %s)",
                [LOCK >> 32, LOCK & 0xFFFFFFFF],
            )
            if not has_lock:
                logger.warning("the clock lost its lock and stands by")
                return
            self.stop.wait(TURN)

    def _run(self, task: Task, now: datetime) -> None:
        try:
            task.run(now)
        except redis.RedisError as error:
            logger.warning("%s waits for Redis: %s", task.name, error)
        except db.UNREACHABLE:
            raise  # the lock is lost with the connection
        except Exception:
            # A bug in one task must stop neither the other tasks nor its own next turn.
            logger.exception("%s failed", task.name)
