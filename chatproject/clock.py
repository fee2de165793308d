"""The clock: `manage.py clock`, one process that runs the periodic tasks and survives outages.

It sweeps runs itself: a sweep queued behind a full worker would come too late. Of several clocks one
works (leader election by a lease in Postgres), and the others stand by. Two may work for a moment, after
one was paused or beside one of the previous release, which elects by a lock of its own: every task may
run twice at the same time (docs/adr/0005-the-clock-holds-a-lease.md has a table of them).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import redis
from django.db import ProgrammingError, connection
from django.utils import timezone
from psycopg.errors import UndefinedTable

from accounts import invitations, sessions, signup
from accounts.privacy import erase, leaving
from billing import schedule as billing_schedule
from chat import announcements
from chat.attachments.sweep import Sweep
from chat.documents import lifecycle, links, tracking
from chat.documents.retrieval import jobs as index_jobs
from chat.insights import recovery as insights
from chat.recovery import mcp_sweep, next_messages, retention, search_sweep
from chat.recovery.sweeper import Sweeper
from chat.runs import queue, wait_estimate
from chat.transfer import archives, imports
from chat.webhooks import dispatch
from chatproject.lib import db, metrics
from chatproject.lib.db import limits
from chatproject.lib.leadership.lease import LeadershipLost, Lease
from chatproject.lib.mail import outbox
from chatproject.lib.stored_limits import uses
from chatproject.ops import alerts

logger = logging.getLogger(__name__)

TURN = 0.5  # seconds between checks of the schedule
STANDBY = 1.0  # seconds between attempts to become the clock that works
LEADERSHIP = "clock"


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
        Task("send next messages", next_messages.EVERY, next_messages.NextMessages().send),
        Task("measure the throughput", wait_estimate.EVERY, queue.publish_throughput),
        Task("send mail", 5.0, outbox.enqueue_due),
        Task("clear mail", 600, outbox.clear),
        Task("grant sign-up credits", 60, signup.grant_lost),
        Task("mail invitations", invitations.EVERY, invitations.mail_due),
        Task("apply invitations", 60, invitations.apply_lost),
        Task("purge deleted chats", retention.EVERY, retention.Retention().purge),
        Task("delete old chats", retention.EXPIRED_EVERY, retention.expire_old),
        Task("purge accounts", erase.EVERY, erase.enqueue_due),
        Task("announce purges of accounts", 600, leaving.remind),
        Task("sweep attachments", 60, Sweep().run),
        Task("index messages", search_sweep.EVERY, search_sweep.enqueue_missing),
        Task("index documents", index_jobs.EVERY, index_jobs.enqueue_due),
        Task("maintain vectors", index_jobs.MAINTAIN_EVERY, index_jobs.enqueue_maintenance),
        Task("resume imports", 60, imports.resume),
        Task("resume documents", 30, tracking.resume),
        Task("draw cards", 60, links.draw_missing),
        Task("purge documents", 60, lifecycle.Purge().run),
        Task("resume exports", 60, archives.resume),
        Task("resume insights", insights.EVERY, insights.resume),
        Task("publish announcements", announcements.EVERY, announcements.Publication().publish_due),
        Task("clear sessions", 60, sessions.clear_expired),
        Task("clear uses of limits", 600, uses.clear_expired),
        Task("refresh MCP servers", mcp_sweep.EVERY, mcp_sweep.sweep),
        Task("hand out webhooks", dispatch.EVERY, dispatch.hand_out),
        Task("clear the log of webhooks", 600, dispatch.clear_log),
        Task("check alerts", alerts.EVERY, alerts.AlertCheck().check),
        *(Task(*scheduled) for scheduled in billing_schedule.tasks()),
    ]


class Clock:
    """Runs the tasks of `make_schedule` until `stop` is set."""

    def __init__(self, make_schedule: Callable[[], list[Task]] = schedule) -> None:
        self.stop = threading.Event()
        self._make_schedule = make_schedule
        self._lease = Lease(LEADERSHIP)

    def run(self) -> None:
        """Work, or stand by for another clock, until `stop` is set."""
        lacks_tables = False
        with limits.statements(limits.STATEMENT):
            while not self.stop.is_set():
                try:
                    is_leader = self._lease.acquire()
                except db.UNREACHABLE as error:
                    logger.warning("the clock waits for the database: %s", error)
                    is_leader = False
                except ProgrammingError as error:
                    if not isinstance(error.__cause__, UndefinedTable):
                        raise
                    if not lacks_tables:
                        logger.warning("the clock waits for its tables: run manage.py migrate")
                    lacks_tables, is_leader = True, False
                if is_leader:
                    logger.info("the clock runs as %s", self._lease.holder)
                    with self._lease.kept():
                        self._work()
                connection.close()
                self.stop.wait(0 if is_leader else STANDBY)

    def _work(self) -> None:
        # New ones, since tasks remember what they saw: another clock may have worked meanwhile.
        tasks = self._make_schedule()
        while not self.stop.is_set():
            now = timezone.now()
            for task in tasks:
                if not self._lease.is_valid():
                    logger.warning("the clock lost its lease and stands by")
                    return
                if task.due <= now:
                    task.due = now + timedelta(seconds=task.every)
                    self._run(task, now)
            self.stop.wait(TURN)

    def _run(self, task: Task, now: datetime) -> None:
        try:
            # Fencing: a clock that was paused in the middle of a task writes no money afterwards.
            with db.before_commit(self._lease.check):
                task.run(now)
        except LeadershipLost:
            logger.warning("%s was left to the next clock", task.name)
        except redis.RedisError as error:
            metrics.CLOCK_FAILURES.labels(task.name).inc()
            logger.warning("%s waits for Redis: %s", task.name, error)
        except db.UNREACHABLE as error:
            logger.warning("%s waits for the database: %s", task.name, error)
            connection.close()
        except Exception:
            # A bug in one task must stop neither the other tasks nor its own next turn.
            metrics.CLOCK_FAILURES.labels(task.name).inc()
            logger.exception("%s failed", task.name)
