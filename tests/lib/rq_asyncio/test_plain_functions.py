"""Plain functions in threads, and the time limit that ends them."""

from __future__ import annotations

import time

import pytest
from rq.timeouts import JobTimeoutException

from chatproject.lib.rq_asyncio.plain_functions import (
    PLAIN_THREADS,
    Interrupted,
    ThreadDeathPenalty,
)
from tests.lib.rq_asyncio import jobs
from tests.lib.rq_asyncio.jobs import wait_until
from tests.lib.rq_asyncio.workers import at_work, burst


def test_plain_function_runs_in_own_thread(queue):
    plain, coroutine = queue.enqueue(jobs.plain_names_itself), queue.enqueue(jobs.names_itself)
    burst(queue)
    assert coroutine.return_value() == [coroutine.id, "loop_0"]
    name, thread = plain.return_value()
    assert name == plain.id
    assert thread != "loop_0"


def test_full_threads_stop_the_dequeuing(queue, folder):
    names = [f"job {number}" for number in range(PLAIN_THREADS + 1)]
    for name in names:
        queue.enqueue(jobs.plain_waits, folder.path, name)

    with at_work(queue):
        folder.wait_for(*(f"{name} started" for name in names[:-1]))
        assert queue.count == 1
        folder.go()
        wait_until(lambda: queue.finished_job_registry.count == len(names))


@pytest.mark.django_db(transaction=True)
def test_thread_gives_its_database_connection_back(queue):
    job = queue.enqueue(jobs.asks_the_database)
    burst(queue)
    assert job.return_value() == 1
    assert jobs.database_wrappers[-1].connection is None


def test_nested_time_limits_keep_their_messages():
    with (
        pytest.raises(JobTimeoutException, match=r"value \(0.05 seconds\)"),
        ThreadDeathPenalty(60, JobTimeoutException),
        ThreadDeathPenalty(0.05, JobTimeoutException),
    ):
        jobs.plain_loops()
    assert str(JobTimeoutException("its own words")) == "its own words"


def test_interrupt_before_the_block_prevents_it():
    penalty = ThreadDeathPenalty(60)
    penalty.interrupt()
    with pytest.raises(Interrupted), penalty:
        pytest.fail("the block has started")


def test_interrupt_after_the_block_does_nothing():
    penalty = ThreadDeathPenalty(60)
    with penalty:
        pass
    penalty.interrupt()
    time.sleep(jobs.POLL)
