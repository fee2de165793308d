"""The clock: one works, the others stand by, and it outlives what it depends on."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import redis
from django.db import connection, connections
from django.utils import timezone

from chatproject import clock
from chatproject.clock import Clock, Task

pytestmark = pytest.mark.django_db(transaction=True)


@contextmanager
def running(*tasks: Task) -> Iterator[Clock]:
    """A clock with these tasks in a thread of its own."""
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


def test_what_happens_by_the_clock():
    tasks = {task.name: task.every for task in clock.schedule()}
    assert tasks["sweep runs"] == 1.0
    assert tasks["measure the throughput"] == 4.0
    assert tasks["poll payments"] == 30
    assert tasks["nightly check"] == 600


def test_a_task_runs_at_its_turn_and_a_failing_one_does_not_stop_it(monkeypatch, caplog):
    monkeypatch.setattr(clock, "TURN", 0.01)
    turns = threading.Semaphore(0)

    def fail(now: object) -> None:
        raise ValueError("on purpose")

    def wait_for_redis(now: object) -> None:
        raise redis.ConnectionError("on purpose")

    def count(now: object) -> None:
        turns.release()

    with running(
        Task("bad", 0.01, fail), Task("away", 0.01, wait_for_redis), Task("good", 0.01, count)
    ):
        for _ in range(3):
            assert turns.acquire(timeout=10)
    assert "bad failed" in caplog.text
    assert "away waits for Redis" in caplog.text


def test_of_two_clocks_one_works_and_the_other_takes_over(monkeypatch):
    monkeypatch.setattr(clock, "TURN", 0.01)
    monkeypatch.setattr(clock, "STANDBY", 0.01)
    worked: list[str] = []
    second = threading.Event()

    def work(name: str) -> Task:
        def run(now: object) -> None:
            worked.append(name)
            if name == "second":
                second.set()

        return Task(name, 0.01, run)

    with running(work("first")) as first:
        wait_until(lambda: worked)
        with running(work("second")):
            seen = len(worked)
            wait_until(lambda: len(worked) > seen + 3)
            assert set(worked) == {"first"}
            first.stop.set()
            assert second.wait(10)


def test_it_goes_on_after_its_connection_was_cut(monkeypatch):
    monkeypatch.setattr(clock, "TURN", 0.01)
    monkeypatch.setattr(clock, "STANDBY", 0.01)
    turns = threading.Semaphore(0)

    def count(now: object) -> None:
        turns.release()

    with running(Task("count", 0.01, count)):
        assert turns.acquire(timeout=10)
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'"
                " AND objid = %s"
                " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())",
                [clock.LOCK & 0xFFFFFFFF],
            )
            assert cursor.rowcount == 1
        while turns.acquire(blocking=False):
            pass
        assert turns.acquire(timeout=10)


def test_the_time_of_a_turn_is_handed_to_the_task(monkeypatch):
    monkeypatch.setattr(clock, "TURN", 0.01)
    times: list[object] = []
    before = timezone.now()
    with running(Task("time", 0.01, times.append)):
        wait_until(lambda: times)
    assert before <= times[0] <= timezone.now()


def wait_until(condition) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
