"""Many jobs at once: their limits, their log, and callbacks that fail or hang."""

from __future__ import annotations

import logging
from typing import Any

from rq import Callback
from rq.job import JobStatus
from rq.rate_limit import RateLimit, RateLimitRegistry

from chatproject.lib.rq_asyncio.worker import RECORD_THREADS
from tests.lib.rq_asyncio import jobs
from tests.lib.rq_asyncio.jobs import wait_until
from tests.lib.rq_asyncio.workers import assert_records_are_clean, at_work, burst, error_of


def test_500_jobs_run_at_once(queue):
    for _ in range(500):
        queue.enqueue(jobs.waits_for_others, 500, job_timeout=60)
    burst(queue, concurrency=500)
    assert queue.finished_job_registry.count == 500
    assert_records_are_clean(queue)


def test_timeout_record_shows_the_place(queue):
    job = queue.enqueue(jobs.sleeps, 60, job_timeout=1)
    burst(queue)
    assert "await asyncio.sleep(seconds)" in error_of(job)


def test_job_may_finish_at_its_limit(queue, folder):
    job = queue.enqueue(jobs.settles, folder.path, "job", job_timeout=1)
    burst(queue)
    assert job.return_value() == "settled"


def test_rate_limit_holds_and_slots_come_free(queue, connection, folder):
    """However a job ends."""
    limit: dict[str, Any] = {"rate_limit": RateLimit(key="user-1", concurrency=2)}
    for _ in range(4):
        queue.enqueue(jobs.shares_a_slot, folder.path, 2, **limit)
    queue.enqueue(jobs.fails, **limit)
    queue.enqueue(jobs.sleeps, 60, job_timeout=1, **limit)
    queue.enqueue(jobs.plain_fails, **limit)
    last = queue.enqueue(jobs.returns, **limit)
    assert queue.count == 2

    burst(queue)

    registry = RateLimitRegistry("user-1", connection)
    assert last.get_status() == JobStatus.FINISHED
    assert folder.notes() == []
    assert registry.get_allowed_job_ids() == registry.get_rate_limited_job_ids() == []
    assert_records_are_clean(queue)


def test_log_contains_no_arguments(queue, caplog):
    caplog.set_level(logging.INFO)
    for name in ("rq.worker", "rq.job"):
        logging.getLogger(name).setLevel(logging.INFO)
    good = queue.enqueue(jobs.adds, 111111, 222222)
    bad = queue.enqueue(jobs.adds, first=333333, third=444444)

    burst(queue)

    text = caplog.text + "".join(str(vars(record)) for record in caplog.records)
    assert good.id in text
    assert bad.id in text
    for secret in ("111111", "222222", "333333", "444444"):
        assert secret not in text


def test_exception_handlers_are_called(queue, connection):
    """And may fail."""
    job = queue.enqueue(jobs.fails)
    burst(queue, exception_handlers=[jobs.exception_handler, jobs.failing_exception_handler])
    assert connection.lrange("callbacks", 0, -1) == [f"handled {job.id} ValueError".encode()]
    assert job.get_status() == JobStatus.FAILED
    assert_records_are_clean(queue)


def test_hanging_callbacks_delay_no_other_record(queue):
    for _ in range(2 * RECORD_THREADS):
        queue.enqueue(jobs.returns, on_success=Callback(jobs.on_success_hangs, timeout=2))
    with at_work(queue):
        wait_until(lambda: queue.count == 0)
        job = queue.enqueue(jobs.returns)
        wait_until(lambda: job.is_finished)
        assert queue.failed_job_registry.count == 0
        wait_until(lambda: queue.failed_job_registry.count == 2 * RECORD_THREADS)
