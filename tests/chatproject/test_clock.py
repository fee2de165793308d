"""The clock: one of several works, the others stand by, and it outlives its dependencies."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import partial
from queue import SimpleQueue

import django_rq
import pytest
import redis
from django.db import OperationalError, connection, connections
from django.utils import timezone

from billing.ledger import audit
from billing.models import LedgerEntry
from chat import protocol
from chat.runs import queue
from chatproject import clock
from chatproject.clock import Clock, Task
from chatproject.lib import db
from chatproject.lib.leadership.lease import leader
from chatproject.lib.leadership.models import Leadership
from chatproject.lib.mail.models import OutgoingMail
from tests.support.programs import wait_until
from tests.support.runs import add_to_log, delta, fresh, mark_running, send_many
from tests.support.stack import Stack
from tests.support.threads import race

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def quick_turns(monkeypatch):
    monkeypatch.setattr(clock, "TURN", 0.01)
    monkeypatch.setattr(clock, "STANDBY", 0.01)


@contextmanager
def running(*tasks: Task) -> Iterator[Clock]:
    """A clock with these tasks, in its own thread."""
    made = Clock(lambda: list(tasks))

    def run() -> None:
        try:
            made.run()
        finally:
            connections.close_all()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield made
    finally:
        made.stop.set()
        thread.join(timeout=30)
    assert not thread.is_alive()


def test_schedule_has_the_documented_intervals():
    tasks = {task.name: task.every for task in clock.schedule()}
    assert tasks["sweep runs"] == 1.0
    assert tasks["measure the throughput"] == 4.0
    assert tasks["poll payments"] == 30
    assert tasks["nightly check"] == 600


def test_failing_task_does_not_stop_the_clock(caplog):
    """Each task gets the time of its turn."""
    times: list[object] = []

    def fail(now: object) -> None:
        raise ValueError("on purpose")

    def lose_redis(now: object) -> None:
        raise redis.ConnectionError("on purpose")

    before = timezone.now()
    tasks = (
        Task("bad", 0.01, fail),
        Task("away", 0.01, lose_redis),
        Task("good", 0.01, times.append),
    )
    with running(*tasks):
        wait_until(lambda: len(times) >= 3, "the good task has run three times")
    assert before <= times[0] <= timezone.now()
    assert "bad failed" in caplog.text
    assert "away waits for Redis" in caplog.text


def test_second_clock_takes_over_after_the_first():
    worked: list[str] = []

    def work(name: str) -> Task:
        return Task(name, 0.01, lambda now: worked.append(name))

    with running(work("first")) as first:
        wait_until(lambda: worked, "the first clock works")
        with running(work("second")):
            seen = len(worked)
            wait_until(lambda: len(worked) > seen + 3, "the first clock goes on")
            assert set(worked) == {"first"}
            first.stop.set()
            wait_until(lambda: "second" in worked, "the second clock works")


def test_clock_continues_after_its_connections_are_cut():
    turns: list[object] = []
    used: set[int] = set()

    def ask(now: object) -> None:
        leader("clock")
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_backend_pid()")
            used.add(cursor.fetchone()[0])

    with connection.cursor() as cursor:
        cursor.execute("SELECT pid FROM pg_stat_activity WHERE datname = current_database()")
        earlier = {pid for (pid,) in cursor.fetchall()}
    with running(Task("count", 0.01, turns.append), Task("ask", 0.01, ask)):
        wait_until(lambda: turns and used, "the clock works")
        with connection.cursor() as cursor:
            # Not those that threads of other tests have kept, which would fail the next one.
            cursor.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
                " AND backend_type = 'client backend' AND NOT pid = ANY(%s)",
                [list(earlier - used)],
            )
        turns.clear()
        wait_until(lambda: len(turns) > 10, "the clock works again")


def test_clock_that_lost_its_lease_finishes_no_turn(caplog):
    """It asks before each task, and only its own time: the database need not answer."""
    worked: list[str] = []

    def lose_it(now: object) -> None:
        worked.append("first")
        clocks.get(timeout=30)._lease._valid_until = 0.0  # as after a pause
        Leadership.objects.update(holder="another", expires_at=timezone.now() + timedelta(hours=1))

    clocks: SimpleQueue[Clock] = SimpleQueue()
    tasks = (Task("lose", 0.01, lose_it), Task("second", 0.01, lambda now: worked.append("second")))
    with running(*tasks) as clock:
        clocks.put(clock)
        wait_until(lambda: "stands by" in caplog.text, "the clock has noticed")
        time.sleep(0.1)
    assert worked == ["first"]


def test_paused_clock_writes_no_money(caplog):
    """Its lease ended in the middle of a money transaction, which is rolled back."""
    written: list[object] = []

    def pay(now: object) -> None:
        def write() -> None:
            OutgoingMail.objects.create(message_id="m", recipients="", due_at=timezone.now())
            clocks.get(timeout=30)._lease._valid_until = 0.0

        written.append(now)
        db.money_transaction(write)

    clocks: SimpleQueue[Clock] = SimpleQueue()
    with running(Task("pay", 60, pay)) as clock:
        clocks.put(clock)
        wait_until(lambda: "pay was left to the next clock" in caplog.text, "it was refused")
    assert written
    assert not OutgoingMail.objects.exists()


def test_clock_outlives_a_database_that_is_unreachable(caplog):
    turns: list[object] = []

    def fail_once(now: object) -> None:
        turns.append(now)
        if len(turns) == 1:
            raise OperationalError("on purpose")

    with running(Task("unlucky", 0.01, fail_once)):
        wait_until(lambda: len(turns) > 3, "the clock goes on")
    assert "unlucky waits for the database" in caplog.text


def test_clock_before_migrate_waits_for_its_tables(caplog):
    turns: list[object] = []
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE leadership RENAME TO leadership_later")
    try:
        with running(Task("first", 0.01, turns.append)):
            wait_until(lambda: "run manage.py migrate" in caplog.text, "the clock waits")
            assert not turns
            with connection.cursor() as cursor:
                cursor.execute("ALTER TABLE leadership_later RENAME TO leadership")
            wait_until(lambda: turns, "the clock works")
    finally:
        with connection.cursor() as cursor:
            cursor.execute("ALTER TABLE IF EXISTS leadership_later RENAME TO leadership")
    assert caplog.text.count("run manage.py migrate") == 1


@pytest.mark.timeout(300)
@pytest.mark.usefixtures("valkey_url")
@pytest.mark.parametrize("blow", ["kill", "pause", "terminate"])
def test_another_process_works_after_a_blow(blow, server_folder):
    """Within ten seconds; a clock that was frozen stands by when it wakes."""

    def works(name: str) -> bool:
        found = leader("clock")
        return bool(found and found.is_alive and f":{stack.pid(name)}:" in found.name)

    def has_tried(since: datetime) -> bool:
        """Whether a clock has tried to take the lease since a time."""
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT FROM pg_stat_activity WHERE datname = current_database()"
                " AND pid <> pg_backend_pid() AND query LIKE '%%WITH taken AS%%'"
                " AND query_start > %s",
                [since],
            )
            return bool(cursor.rowcount)

    with Stack(server_folder, provider_url="http://127.0.0.1:9/v1") as stack:
        stack.start("clock")
        wait_until(lambda: works("clock"), "the first clock works", patience=120)
        launched_at = timezone.now()
        stack.start("clock-2")
        wait_until(lambda: has_tried(launched_at), "the second stands by", patience=120)
        struck_at = time.monotonic()
        getattr(stack, blow)("clock")
        wait_until(lambda: works("clock-2"), "the second clock works")
        assert time.monotonic() - struck_at < 10
        if blow == "pause":
            stack.go_on("clock")
            wait_until(lambda: "lost its lease" in stack.log("clock"), "the first stands by")
            assert works("clock-2")


def test_two_clocks_at_once_do_everything_once(owner, assistant, settings, valkey_client):
    """As beside a clock of the previous release, or one that was paused in the middle of a task."""
    settings.RUN_ATTEMPTS, settings.USER_CONCURRENCY = 2, 50
    settings.MAIL_TRANSPORT = "django.core.mail.backends.locmem.EmailBackend"
    valkey_client.flushall()
    now = timezone.now()
    again, last = send_many(owner, assistant, 5), send_many(owner, assistant, 5)
    valkey_client.flushall()  # their jobs
    for attempt, runs in enumerate((again, last), start=1):
        for run in runs:
            mark_running(run, attempt, started_at=now - timedelta(minutes=1))
            add_to_log(valkey_client, delta(run, protocol.first_seq(attempt) + 1, "Half", attempt))
    OutgoingMail.objects.create(message_id="m", recipients="", content=b"m", due_at=now)
    schedules = [clock.schedule(), clock.schedule()]
    for second in range(0, 14, 2):
        for tasks in zip(*schedules, strict=True):
            results = race([partial(task.run, now + timedelta(seconds=second)) for task in tasks])
            assert not [error for error in results if isinstance(error, Exception)], tasks[0].name
    assert {(run.status, run.attempt) for run in map(fresh, [run.pk for run in again])} == {
        ("queued", 1)
    }
    assert {fresh(run.pk).status for run in last} == {"failed"}
    jobs = django_rq.get_queue("chat").job_ids
    assert sorted(jobs) == sorted(queue.job_id(run.pk, 2) for run in again)
    assert LedgerEntry.objects.filter(kind="usage").count() == len(last)
    assert len(django_rq.get_queue("low").job_ids) == 1
    billing = django_rq.get_queue("billing").job_ids
    assert set(billing) >= {"task-expire-holds", "task-nightly-check"}
    assert audit.check() == []
