"""The clock: one of several works, the others stand by, and it outlives its dependencies."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import redis
from django.db import connection, connections
from django.utils import timezone

from chatproject import clock
from chatproject.clock import Clock, Task
from tests.support.programs import wait_until

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def quick_turns(monkeypatch):
    monkeypatch.setattr(clock, "TURN", 0.01)
    monkeypatch.setattr(clock, "STANDBY", 0.01)


@contextmanager
def running(*tasks: Task) -> Iterator[Clock]:
    """A clock with these tasks, in its own thread."""
    made = Clock()
    made._tasks = list(tasks)

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


def test_clock_continues_after_its_connection_is_cut():
    turns: list[object] = []
    with running(Task("count", 0.01, turns.append)):
        wait_until(lambda: turns, "the clock works")
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'"
                " AND objid = %s"
                " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())",
                [clock.LOCK & 0xFFFFFFFF],
            )
            assert cursor.rowcount == 1
        turns.clear()
        wait_until(lambda: turns, "the clock works again")
