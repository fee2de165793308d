"""The lease of a leader: one process has it, and stops before another may begin."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from django.db import OperationalError, connection, connections
from django.db.models import F
from django.utils import timezone

from chatproject.lib.db import prepared
from chatproject.lib.leadership import lease as leases
from chatproject.lib.leadership.lease import LeadershipLost, Lease, leader
from chatproject.lib.leadership.models import Leadership
from tests.support.programs import wait_until

pytestmark = pytest.mark.django_db(transaction=True)

CANDIDATES = 8


def let_it_end() -> None:
    """Move the end of the lease into the past, by the database's clock."""
    Leadership.objects.update(expires_at=F("expires_at") - timedelta(hours=1))


def test_one_process_leads_and_its_rivals_wait():
    first, second = Lease("test"), Lease("test")
    assert first.acquire()
    assert first.acquire()
    assert not second.acquire()
    assert (first.is_valid(), second.is_valid()) == (True, False)
    assert Lease("another").acquire()


@pytest.mark.parametrize("has_row", [False, True], ids=["no row yet", "an ended lease"])
def test_one_of_many_candidates_wins(has_row):
    if has_row:
        assert Lease("test").acquire()
        let_it_end()
    together = threading.Barrier(CANDIDATES)

    def run_for_it(_: int) -> bool:
        candidate = Lease("test")
        connection.ensure_connection()
        together.wait(30)
        try:
            return candidate.acquire()
        finally:
            connections.close_all()

    with ThreadPoolExecutor(CANDIDATES) as threads:
        assert sum(threads.map(run_for_it, range(CANDIDATES))) == 1


def test_candidate_that_waited_for_the_row_sees_its_renewal():
    """The time is read after the wait for the lock, not at the beginning of the statement."""
    first, second = Lease("test"), Lease("test")
    assert first.acquire()
    let_it_end()
    answers: list[bool] = []

    def run_for_it() -> None:
        answers.append(second.acquire())
        connections.close_all()

    with connection.cursor() as cursor:
        cursor.execute("BEGIN")
        assert first.acquire()
        rival = threading.Thread(target=run_for_it)
        rival.start()
        time.sleep(0.3)  # so that it waits for the row
        cursor.execute("COMMIT")
    rival.join()
    assert answers == [False]


def test_ended_lease_is_taken_over_and_not_renewed():
    first, second = Lease("test"), Lease("test")
    assert first.acquire()
    let_it_end()
    assert second.acquire()
    assert not first.acquire()
    assert not first.is_valid()
    with pytest.raises(LeadershipLost):
        first.check()


def test_lease_ends_for_its_process_before_others(monkeypatch):
    """A paused process compares its own time, which began before the renewal was sent."""
    monkeypatch.setattr(leases, "LEASE", 0.5)
    first = Lease("test")
    before = leases.now()
    assert first.acquire()
    assert first._valid_until <= before + 0.5 + (leases.now() - before)
    [expires_in] = [
        (expires - timezone.now()).total_seconds()
        for expires in Leadership.objects.values_list("expires_at", flat=True)
    ]
    assert first._valid_until - leases.now() <= expires_in
    wait_until(lambda: not first.is_valid(), "the lease has ended here")


def test_leader_is_renewed_while_its_task_is_slow(monkeypatch):
    monkeypatch.setattr(leases, "LEASE", 0.6)
    monkeypatch.setattr(leases, "RENEW_EVERY", 0.05)
    first = Lease("test")
    assert first.acquire()
    with first.kept():
        time.sleep(1.5)  # a task
        assert first.is_valid()
        assert not Lease("test").acquire()
    assert Lease("test").acquire()  # at once: it was released


def test_stuck_leader_loses_the_lease(monkeypatch, caplog):
    monkeypatch.setattr(leases, "LEASE", 0.3)
    monkeypatch.setattr(leases, "RENEW_EVERY", 0.05)
    monkeypatch.setattr(leases, "STUCK", 0.2)
    first, second = Lease("test"), Lease("test")
    assert first.acquire()
    with first.kept():
        wait_until(second.acquire, "another process leads")
        assert not first.is_valid()
    assert "its leader is stuck" in caplog.text
    assert second.is_valid()  # the release of the first did not touch it


def test_renewal_outlives_an_outage(monkeypatch, caplog):
    monkeypatch.setattr(leases, "RENEW_EVERY", 0.02)
    change, failures = prepared.change, [OperationalError("on purpose")] * 3

    def fail_first(sql: str, params: prepared.Params) -> int:
        if failures:
            raise failures.pop()
        return change(sql, params)

    monkeypatch.setattr(prepared, "change", fail_first)
    first = Lease("test")
    assert first.acquire()
    first._valid_until = 0.0
    with first.kept():
        wait_until(first.is_valid, "the lease is renewed")
    assert "could not be renewed" in caplog.text


def test_leader_is_described_by_name_and_age():
    assert leader("test") is None
    first = Lease("test")
    assert first.acquire()
    Leadership.objects.update(renewed_at=F("renewed_at") - timedelta(seconds=3))
    found = leader("test")
    assert (found.name, found.is_alive) == (first.holder, True)
    assert 3 <= found.age < 60
    let_it_end()
    assert not leader("test").is_alive


def test_two_processes_of_one_machine_differ():
    assert Lease("test").holder != Lease("test").holder
