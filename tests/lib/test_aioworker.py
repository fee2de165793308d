"""The asyncio worker within this process: what it does with jobs, commands and Redis."""

from __future__ import annotations

import json
import logging
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from django.urls import reverse
from django_rq import get_queue
from django_rq.settings import get_queues_map
from redis import Redis
from rq import Callback, Queue
from rq.command import (
    send_command,
    send_kill_horse_command,
    send_shutdown_command,
    send_stop_execution_command,
    send_stop_job_command,
)
from rq.executions import Execution
from rq.job import Dependency, Job, JobStatus, Retry
from rq.rate_limit import RateLimit, RateLimitRegistry
from rq.serializers import JSONSerializer
from rq.suspension import resume, suspend
from rq.timeouts import JobTimeoutException
from rq.worker import DequeueStrategy, Worker

from chatproject.lib import aioworker
from chatproject.lib.aioworker import (
    AsyncWorker,
    Interrupted,
    ThreadDeathPenalty,
    megabytes,
    on_shutdown,
    on_start,
)
from tests.lib import aioworker_jobs as jobs
from tests.lib.aioworker_guest import GuestWorker
from tests.lib.aioworker_jobs import PATIENCE, Folder, wait_until


class QuickWorker(GuestWorker):
    """Notices everything sooner, so that the tests need not wait."""

    dequeue_timeout = 0.05  # type: ignore[assignment]


@pytest.fixture(autouse=True)
def quick_checks(monkeypatch):
    monkeypatch.setattr(aioworker, "CHECK_SECONDS", 0.05)


def make_worker(
    queue: Queue, *, worker_class: type[AsyncWorker] = QuickWorker, **options: Any
) -> AsyncWorker:
    return worker_class([queue], connection=queue.connection, serializer=JSONSerializer, **options)


def burst(queue: Queue, **options: Any) -> AsyncWorker:
    worker = make_worker(queue, **options)
    worker.work(burst=True)
    return worker


@contextmanager
def at_work(queue: Queue, **options: Any) -> Iterator[AsyncWorker]:
    """A worker in a thread, which is shut down at the end."""
    options = {"job_monitoring_interval": 0.2, "drain_seconds": 0} | options
    worker = make_worker(queue, **options)
    thread = threading.Thread(target=worker.work, daemon=True)
    thread.start()
    try:
        wait_until(lambda: worker.get_state() in ("idle", "busy", "suspended"))
        yield worker
    finally:
        with suppress(RuntimeError):  # its loop is closed: it has ended by itself
            worker.request_stop(signal.SIGTERM, None)
        thread.join(PATIENCE)
        assert not thread.is_alive()


@pytest.fixture
def connection(valkey_url: str) -> Iterator[Redis]:
    with Redis.from_url(valkey_url) as client:
        yield client


@pytest.fixture
def queue(connection: Redis) -> Queue:
    return Queue("chat", connection=connection, serializer=JSONSerializer)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def assert_books_are_clean(queue: Queue) -> None:
    """Nothing is left of the executions of jobs that are over."""
    connection = queue.connection
    assert queue.started_job_registry.get_job_ids(cleanup=False) == []
    assert queue.intermediate_queue.get_job_ids() == []
    assert connection.keys("rq:execution*") == []
    assert connection.keys("rq:worker:*:executions") == []


def error_of(job: Job) -> str:
    result = job.latest_result()
    assert result is not None
    return str(result.exc_string)


# Jobs


def test_it_runs_500_jobs_at_once_in_one_process(queue):
    for _ in range(500):
        queue.enqueue(jobs.waits_for_others, 500, job_timeout=60)

    worker = burst(queue, concurrency=500)

    assert queue.finished_job_registry.count == 500
    assert worker.failed_job_count == 0
    assert_books_are_clean(queue)


def test_it_runs_no_more_jobs_at_once_than_it_may(queue, folder):
    for number in range(5):
        queue.enqueue(jobs.waits, folder.path, f"job {number}")

    with at_work(queue, concurrency=2):
        folder.wait_for("job 0 started", "job 1 started")
        assert queue.count == 3
        folder.go()
        wait_until(lambda: queue.finished_job_registry.count == 5)

    assert_books_are_clean(queue)


def test_whatever_a_job_raises_harms_no_other_job(queue):
    bad = {
        queue.enqueue(jobs.fails): "ValueError: as it should",
        queue.enqueue(jobs.exits): "SystemExit: 3",
        queue.enqueue(jobs.interrupts): "KeyboardInterrupt",
        queue.enqueue(jobs.cancels_itself): "asyncio.exceptions.CancelledError: by itself",
        queue.enqueue(jobs.times_out_by_itself): "TimeoutError: of the job's own",
        queue.enqueue(jobs.plain_fails): "ValueError: as it should",
        queue.enqueue(jobs.returns, 1, 2): "TypeError: returns() takes from 0 to 1 positional",
        queue.enqueue("tests.lib.aioworker_jobs.missing"): "ValueError: Invalid attribute name",
        queue.enqueue("no.such.module"): "ValueError: Invalid attribute name",
    }
    unreadable = queue.enqueue(jobs.returns)
    queue.connection.hset(unreadable.key, "data", b"not JSON")
    bad[unreadable] = "rq.exceptions.DeserializationError"
    good = queue.enqueue(jobs.returns, "fine")

    burst(queue)

    assert good.return_value() == "fine"
    assert set(queue.failed_job_registry.get_job_ids()) == {job.id for job in bad}
    for job, error in bad.items():
        assert error in error_of(job).splitlines()[-1], job.description
    assert_books_are_clean(queue)


def test_a_job_that_cannot_be_read_at_all_does_not_end_the_worker(queue):
    broken = queue.enqueue(jobs.returns)
    queue.connection.hset(broken.key, "status", "no such status")
    good = queue.enqueue(jobs.returns, "fine")

    with at_work(queue):
        wait_until(lambda: good.get_status() == JobStatus.FINISHED)


@pytest.mark.parametrize(("function", "arguments"), [(jobs.sleeps, [60]), (jobs.plain_loops, [])])
def test_a_job_over_its_time_limit_fails_as_with_rq(queue, function, arguments):
    job = queue.enqueue(function, args=arguments, job_timeout=1)
    other = queue.enqueue(jobs.sleeps, 1.5)

    burst(queue)

    words = "rq.timeouts.JobTimeoutException: Task exceeded maximum timeout value (1 seconds)"
    assert error_of(job).strip().endswith(words)
    assert job.get_status() == JobStatus.FAILED
    assert other.get_status() == JobStatus.FINISHED
    assert_books_are_clean(queue)


def test_the_record_of_a_timeout_shows_where_the_job_was(queue):
    job = queue.enqueue(jobs.sleeps, 60, job_timeout=1)
    burst(queue)
    assert "await asyncio.sleep(seconds)" in error_of(job)


def test_a_job_that_ends_in_order_after_its_time_limit_is_finished(queue, folder):
    job = queue.enqueue(jobs.settles, folder.path, "job", job_timeout=1)
    burst(queue)
    assert job.return_value() == "settled"


def test_a_job_without_time_limit_runs(queue):
    job = queue.enqueue(jobs.returns, 1, job_timeout=-1)
    burst(queue)
    assert job.return_value() == 1


def test_a_plain_function_runs_in_a_thread_and_a_coroutine_in_the_loop(queue):
    plain, coroutine = queue.enqueue(jobs.plain_names_itself), queue.enqueue(jobs.names_itself)

    burst(queue)

    here = threading.current_thread().name
    assert coroutine.return_value() == [coroutine.id, here]
    assert plain.return_value()[0] == plain.id
    assert plain.return_value()[1] != here


def test_plain_functions_leave_room_for_no_more_than_there_are_threads(queue, folder):
    for number in range(aioworker.PLAIN_THREADS + 1):
        queue.enqueue(jobs.plain_waits, folder.path, f"job {number}")

    with at_work(queue):
        folder.wait_for(*(f"job {number} started" for number in range(aioworker.PLAIN_THREADS)))
        assert queue.count == 1
        folder.go()
        wait_until(lambda: queue.finished_job_registry.count == aioworker.PLAIN_THREADS + 1)


@pytest.mark.django_db(transaction=True)
def test_the_thread_of_a_plain_function_gives_its_database_connection_back(queue):
    job = queue.enqueue(jobs.asks_the_database)
    burst(queue)
    assert job.return_value() == 1
    assert jobs.database_wrappers[-1].connection is None


def test_a_job_puts_no_arguments_into_the_log(queue, caplog):
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


# Callbacks


def test_callbacks_are_called_in_a_thread(queue, connection, folder):
    good = queue.enqueue(
        jobs.returns, 5, on_success=Callback(jobs.on_success), on_failure=Callback(jobs.on_failure)
    )
    bad = queue.enqueue(
        jobs.fails, on_success=Callback(jobs.on_success), on_failure=Callback(jobs.on_failure)
    )

    burst(queue)

    said = {text.decode() for text in connection.lrange("callbacks", 0, -1)}
    assert said == {f"success {good.id} 5", f"failure {bad.id} ValueError"}


@pytest.mark.parametrize(
    ("callback", "error"),
    [
        (Callback(jobs.on_success_fails), "RuntimeError: the callback failed"),
        (Callback(jobs.on_success_exits), "SystemExit"),
        (Callback("tests.lib.aioworker_jobs.missing"), "ValueError: Invalid attribute name"),
        (Callback(jobs.on_success_hangs, timeout=1), "maximum timeout value (1 seconds)"),
    ],
)
def test_a_success_callback_that_fails_makes_the_job_fail(queue, callback, error):
    job = queue.enqueue(jobs.returns, on_success=callback)
    burst(queue)
    assert job.get_status() == JobStatus.FAILED
    assert error in error_of(job)
    assert_books_are_clean(queue)


def test_hanging_callbacks_do_not_keep_other_jobs_from_being_recorded(queue):
    for _ in range(2 * aioworker.BOOK_THREADS):
        queue.enqueue(jobs.returns, on_success=Callback(jobs.on_success_hangs, timeout=2))
    with at_work(queue):
        wait_until(lambda: queue.count == 0)
        job = queue.enqueue(jobs.returns)
        wait_until(lambda: job.is_finished)
        assert queue.failed_job_registry.count == 0
        wait_until(lambda: queue.failed_job_registry.count == 2 * aioworker.BOOK_THREADS)


def test_exception_handlers_are_called_and_may_fail(queue, connection):
    job = queue.enqueue(jobs.fails)
    burst(queue, exception_handlers=[jobs.exception_handler, jobs.failing_exception_handler])
    assert connection.lrange("handled", 0, -1) == [f"{job.id} ValueError".encode()]
    assert job.get_status() == JobStatus.FAILED
    assert_books_are_clean(queue)


# Retries, limits, dependencies


def test_a_failed_job_is_tried_again(queue, folder):
    job = queue.enqueue(jobs.fails_until, folder.path, 3, retry=Retry(max=2))
    burst(queue)
    assert job.return_value() == 3
    assert_books_are_clean(queue)


def test_a_retry_with_an_interval_is_scheduled(queue):
    job = queue.enqueue(jobs.fails, retry=Retry(max=1, interval=60))
    burst(queue)
    assert job.get_status() == JobStatus.SCHEDULED
    assert queue.scheduled_job_registry.get_job_ids() == [job.id]
    assert_books_are_clean(queue)


def test_a_job_may_return_a_retry(queue, folder):
    job = queue.enqueue(jobs.returns_retry, folder.path, 3)
    burst(queue)
    assert job.return_value() == 3
    assert_books_are_clean(queue)


def test_a_rate_limit_holds_and_its_slots_come_free_however_a_job_ends(queue, connection, folder):
    limit = RateLimit(key="user-1", concurrency=2)
    for _ in range(4):
        queue.enqueue(jobs.shares_a_slot, folder.path, 2, rate_limit=limit)
    queue.enqueue(jobs.fails, rate_limit=limit)
    queue.enqueue(jobs.sleeps, 60, job_timeout=1, rate_limit=limit)
    queue.enqueue(jobs.plain_fails, rate_limit=limit)
    last = queue.enqueue(jobs.returns, rate_limit=limit)
    assert queue.count == 2

    burst(queue)

    registry = RateLimitRegistry("user-1", connection)
    assert last.get_status() == JobStatus.FINISHED
    assert folder.notes() == []
    assert registry.get_allowed_job_ids() == registry.get_rate_limited_job_ids() == []
    assert_books_are_clean(queue)


def test_dependents_follow(queue):
    first = queue.enqueue(jobs.returns)
    second = queue.enqueue(jobs.returns, depends_on=first)
    bad = queue.enqueue(jobs.fails, depends_on=second)
    never = queue.enqueue(jobs.returns, depends_on=bad)
    anyway = queue.enqueue(jobs.returns, depends_on=Dependency(bad, allow_failure=True))

    burst(queue)

    assert second.get_status() == anyway.get_status() == JobStatus.FINISHED
    assert never.get_status() == JobStatus.DEFERRED
    assert queue.deferred_job_registry.get_job_ids() == [never.id]


@pytest.mark.parametrize("in_burst", [True, False])
def test_a_dependent_that_rq_has_left_behind_is_enqueued_soon(queue, monkeypatch, in_burst):
    dependent = queue.enqueue(jobs.returns)
    assert queue.pop_job_id() == dependent.id
    queue.enqueue(jobs.leaves_behind, dependent.id)
    if in_burst:
        monkeypatch.setattr(aioworker, "CHECK_SECONDS", 10)
        burst(queue)
        assert dependent.is_finished
    else:
        with at_work(queue):
            wait_until(lambda: dependent.is_finished)


# Commands


@pytest.mark.parametrize("function", [jobs.waits, jobs.stumbles, jobs.plain_waits])
def test_a_stop_command_stops_that_job_and_no_other(queue, connection, folder, function):
    job = queue.enqueue(function, folder.path, "job", on_stopped=Callback(jobs.on_stopped))
    other = queue.enqueue(jobs.waits, folder.path, "other")

    with at_work(queue):
        folder.wait_for("job started", "other started")
        send_stop_job_command(connection, job.id)
        wait_until(lambda: job.get_status() == JobStatus.STOPPED)
        folder.go()
        wait_until(lambda: other.is_finished)

    assert queue.failed_job_registry.get_job_ids() == [job.id]
    assert error_of(job) == "Job stopped by user."
    assert connection.lrange("callbacks", 0, -1) == [f"stopped {job.id}".encode()]
    assert_books_are_clean(queue)


def test_a_stopped_coroutine_is_told_so(queue, connection, folder):
    job = queue.enqueue(jobs.waits, folder.path, "job")
    with at_work(queue):
        folder.wait_for("job started")
        send_stop_job_command(connection, job.id)
        folder.wait_for("job cancelled: stopped")


def test_a_stopped_job_is_not_tried_again_and_gives_its_slot_back(queue, connection, folder):
    limit = RateLimit(key="user-1", concurrency=1)
    job = queue.enqueue(jobs.waits, folder.path, "job", retry=Retry(max=3), rate_limit=limit)
    waiting = queue.enqueue(jobs.returns, rate_limit=limit)
    with at_work(queue):
        folder.wait_for("job started")
        send_stop_job_command(connection, job.id)
        wait_until(lambda: waiting.is_finished)
    assert job.get_status() == JobStatus.STOPPED


def test_many_jobs_stopped_at_once_are_all_stopped(queue, connection, folder):
    stopped = [queue.enqueue(jobs.waits, folder.path, f"job {n}") for n in range(20)]
    with at_work(queue):
        folder.wait_for(*(f"job {n} started" for n in range(20)))
        for job in stopped:
            send_stop_job_command(connection, job.id)
        wait_until(lambda: queue.failed_job_registry.count == 20)
    assert {job.get_status() for job in stopped} == {JobStatus.STOPPED}


def test_a_job_that_ends_in_order_when_stopped_is_finished(queue, connection, folder):
    job = queue.enqueue(jobs.settles, folder.path, "job")
    with at_work(queue):
        folder.wait_for("job started")
        send_stop_job_command(connection, job.id)
        wait_until(lambda: job.is_finished)
    assert job.return_value() == "settled"


def test_one_execution_can_be_stopped(queue, connection, folder):
    job = queue.enqueue(jobs.waits, folder.path, "job")
    with at_work(queue):
        folder.wait_for("job started")
        (execution,) = job.get_executions()
        send_command(
            connection, execution.worker_name, "stop-execution", job_id=job.id, execution_id="x"
        )
        send_stop_execution_command(connection, job.id, execution.id)
        wait_until(lambda: job.get_status() == JobStatus.STOPPED)


def test_commands_that_make_no_sense_are_ignored(queue, connection, folder):
    job = queue.enqueue(jobs.waits, folder.path, "job")
    with at_work(queue) as worker:
        folder.wait_for("job started")
        for rubbish in (b"\xff", "not JSON", "[]", "{}", json.dumps({"command": "dance"})):
            connection.publish(worker.pubsub_channel_name, rubbish)
        send_kill_horse_command(connection, worker.name)
        send_command(connection, worker.name, "stop-job", job_id="of-another-worker")
        send_stop_job_command(connection, job.id)
        wait_until(lambda: job.get_status() == JobStatus.STOPPED)


def test_a_shutdown_command_is_as_good_as_a_signal(queue, connection, folder):
    job = queue.enqueue(jobs.waits, folder.path, "job")
    with at_work(queue, drain_seconds=PATIENCE) as worker:
        folder.wait_for("job started")
        send_shutdown_command(connection, worker.name)
        wait_until(lambda: worker.shutdown_requested_date)
        folder.go()
        wait_until(lambda: job.is_finished)
        wait_until(lambda: Worker.all(connection) == [])


# The worker's own life


def test_suspended_it_takes_no_job_until_it_is_resumed(queue, connection, folder):
    queue.enqueue(jobs.waits, folder.path, "running")
    # Not the quick one: it is to wait for a job while it is suspended.
    with at_work(queue, worker_class=AsyncWorker) as worker:
        folder.wait_for("running started")
        suspend(connection)
        wait_until(lambda: worker._is_suspended)
        job = queue.enqueue(jobs.returns)
        folder.go()
        wait_until(lambda: connection.hget(worker.key, "state") == b"suspended")
        assert job.get_status() == JobStatus.QUEUED
        resume(connection)
        wait_until(lambda: job.is_finished)


def test_suspended_in_burst_mode_it_quits(queue, connection):
    suspend(connection)
    job = queue.enqueue(jobs.returns)
    assert make_worker(queue).work(burst=True) is False
    assert job.get_status() == JobStatus.QUEUED


def test_a_worker_that_has_grown_too_large_finishes_what_it_has_and_ends(queue):
    queue.enqueue(jobs.sleeps, 0.5)
    assert megabytes() > 1
    assert make_worker(queue, max_megabytes=1).work() is True
    assert queue.finished_job_registry.count == 1


def test_it_stops_after_a_number_of_jobs_when_they_are_over(queue, folder):
    for number in range(3):
        queue.enqueue(jobs.sleeps, number / 10)
    assert make_worker(queue).work(max_jobs=2) is True
    assert queue.count == 1
    assert queue.finished_job_registry.count == 2


def test_it_stops_when_it_was_idle_for_a_time(queue):
    queue.enqueue(jobs.sleeps, 1.1)
    assert make_worker(queue).work(max_idle_time=1) is True
    assert queue.finished_job_registry.count == 1


@pytest.mark.parametrize(
    ("strategy", "order"),
    [("default", ["a", "a", "b", "b"]), ("round_robin", ["a", "b", "a", "b"])],
)
def test_it_serves_several_queues_in_the_order_it_is_told(connection, folder, strategy, order):
    queues = [Queue(name, connection=connection, serializer=JSONSerializer) for name in "ab"]
    for queue in queues:
        for _ in range(2):
            queue.enqueue(jobs.note, folder.path, queue.name)
    worker = QuickWorker(queues, connection=connection, serializer=JSONSerializer, concurrency=1)
    worker.work(burst=True, dequeue_strategy=DequeueStrategy(strategy))
    assert folder.notes() == order
    for queue in queues:
        assert queue.finished_job_registry.count == 2
        assert_books_are_clean(queue)


def test_the_last_job_that_ends_makes_it_idle_at_once(queue, connection, folder, monkeypatch):
    monkeypatch.setattr(aioworker, "CHECK_SECONDS", 2 * PATIENCE)
    queue.enqueue(jobs.waits, folder.path, "job")
    with at_work(queue) as worker:
        folder.wait_for("job started")
        folder.go()
        wait_until(lambda: connection.hget(worker.key, "state") == b"idle")


def test_it_says_whether_there_was_a_job(queue):
    assert make_worker(queue).work(burst=True) is False


def test_other_tools_see_what_it_does(queue, connection, folder):
    ids = {queue.enqueue(jobs.waits, folder.path, f"job {n}").id for n in range(3)}
    with at_work(queue) as worker:
        folder.wait_for("job 0 started", "job 1 started", "job 2 started")
        (seen,) = Worker.all(queue=queue, serializer=JSONSerializer)
        assert seen.name == worker.name
        assert seen.get_state() == "busy"
        assert {execution.job_id for execution in seen.get_current_executions()} == ids
        assert seen.get_current_job_id() in ids
        assert seen.get_current_job().get_status() == JobStatus.STARTED
        assert set(queue.started_job_registry.get_job_ids()) == ids
        folder.go()
        wait_until(lambda: connection.hget(worker.key, "state") == b"idle")
        (seen,) = Worker.all(queue=queue)
        assert seen.successful_job_count == 3
        assert seen.get_current_job_id() is None
    assert Worker.all(queue=queue) == []


@pytest.mark.django_db(transaction=True)
def test_the_admin_pages_show_its_jobs_and_can_stop_one(admin_client, connection, folder):
    queue = get_queue("chat")
    index = get_queues_map()["chat"]
    ids = [queue.enqueue(jobs.waits, folder.path, f"job {number}").id for number in range(2)]

    def page(name: str, *arguments: Any) -> str:
        response = admin_client.get(reverse(f"admin:django_rq_{name}", args=[index, *arguments]))
        assert response.status_code == 200
        return str(response.content)

    with at_work(queue) as worker:
        folder.wait_for("job 0 started", "job 1 started")
        assert worker.name in page("workers")
        assert "busy" in page("workers")
        started = page("started_jobs")
        assert all(job_id in started for job_id in ids)
        assert "started" in page("job_detail", ids[0])
        admin_client.post(reverse("admin:django_rq_stop_job", args=[index, ids[0]]))
        wait_until(lambda: queue.failed_job_registry.count == 1)
    assert queue.failed_job_registry.get_job_ids() == [ids[0]]


def test_all_running_jobs_have_their_heartbeat(queue, connection, folder):
    running = [queue.enqueue(jobs.waits, folder.path, f"job {n}") for n in range(3)]
    with at_work(queue):
        folder.wait_for("job 0 started", "job 1 started", "job 2 started")
        members = connection.zrange(queue.started_job_registry.key, 0, -1)
        soon = time.time() + 20
        connection.zadd(queue.started_job_registry.key, dict.fromkeys(members, soon))
        for job in running:
            connection.hset(job.key, "last_heartbeat", "long ago")
            connection.expire(f"rq:execution:{job.id}:{job.get_executions()[0].id}", 20)

        def beaten(job: Job) -> bool:
            (execution,) = job.get_executions()
            score = connection.zscore(queue.started_job_registry.key, execution.composite_key)
            return bool(
                score > soon
                and connection.ttl(execution.key) > 20
                and connection.hget(job.key, "last_heartbeat") != b"long ago"
            )

        wait_until(lambda: all(beaten(job) for job in running))


def test_an_execution_that_expired_is_entered_again(queue, connection, folder):
    job = queue.enqueue(jobs.waits, folder.path, "job")
    with at_work(queue):
        folder.wait_for("job started")
        (before,) = job.get_executions()
        connection.delete(before.key)
        wait_until(lambda: connection.hexists(before.key, "created_at"))
        (after,) = job.get_executions()
        assert (after.id, after.created_at) == (before.id, before.created_at)


def test_a_job_deleted_while_it_runs_leaves_no_ghost(queue, connection, folder):
    job = queue.enqueue(jobs.waits, folder.path, "job")
    with at_work(queue) as worker:
        folder.wait_for("job started")
        connection.delete(job.key)
        beat = connection.hget(worker.key, "last_heartbeat")
        wait_until(lambda: connection.hget(worker.key, "last_heartbeat") > beat)
        next_beat = worker._next_heartbeat
        wait_until(lambda: worker._next_heartbeat > next_beat)
        assert not connection.exists(job.key)


def test_after_flushall_it_registers_again_with_its_jobs_and_goes_on(queue, connection, folder):
    job = queue.enqueue(jobs.waits, folder.path, "job")
    with at_work(queue) as worker:
        folder.wait_for("job started")
        connection.flushall()

        wait_until(lambda: queue.started_job_registry.get_job_ids() == [job.id])
        wait_until(lambda: connection.hexists(worker.key, "birth"))
        assert [seen.name for seen in Worker.all(queue=queue)] == [worker.name]
        seen = Job.fetch(job.id, connection=connection, serializer=JSONSerializer)
        assert (seen.get_status(), seen.func_name) == (JobStatus.STARTED, job.func_name)
        (execution,) = job.get_executions()
        assert Execution.fetch(execution.id, job.id, connection).worker_name == worker.name
        new = queue.enqueue(jobs.returns, "new")
        wait_until(lambda: new.is_finished)
        folder.go()
        wait_until(lambda: job.is_finished)
        assert job.return_value() == "job"
    assert_books_are_clean(queue)


def test_flushed_in_the_moment_a_job_ends_the_result_is_recorded(queue, connection, folder):
    job = queue.enqueue(jobs.waits, folder.path, "job")
    with at_work(queue):
        folder.wait_for("job started")
        connection.flushall()
        folder.go()
        wait_until(lambda: connection.hget(job.key, "status") == b"finished")
        assert job.return_value() == "job"
        assert queue.finished_job_registry.get_job_ids() == [job.id]


def test_flushed_during_a_callback_the_job_still_counts_as_started(queue, connection, folder):
    callback = Callback(jobs.on_success_waits)
    job = queue.enqueue(jobs.returns, folder.path, on_success=callback)
    with at_work(queue):
        folder.wait_for("callback started")
        connection.flushall()
        wait_until(lambda: connection.hexists(job.key, "data"))
        assert job.get_status() == JobStatus.STARTED
        folder.go()
        wait_until(lambda: job.is_finished)


def test_a_job_lost_by_another_worker_fails_with_its_callback(queue, connection):
    """RQ's maintenance would use SIGALRM for the callback, which a thread cannot."""
    job = queue.enqueue(jobs.returns, on_failure=Callback(jobs.on_failure))
    lost = make_worker(queue, name="lost")
    assert queue.pop_job_id() == job.id
    lost.prepare_execution(job)
    lost.prepare_job_execution(job)
    members = connection.zrange(queue.started_job_registry.key, 0, -1)
    connection.zadd(queue.started_job_registry.key, dict.fromkeys(members, 1))

    burst(queue)

    assert job.get_status() == JobStatus.FAILED
    said = connection.lrange("callbacks", 0, -1)
    assert said == [f"failure {job.id} AbandonedJobError".encode()]


def test_a_start_callback_comes_before_the_first_job_and_may_fail(queue, folder, caplog):
    async def fail() -> None:
        jobs.note(folder.path, "opened")
        raise OSError("cannot be opened")

    queue.enqueue(jobs.leaves_a_callback, folder.path)
    on_start(fail)
    burst(queue)
    assert folder.notes() == ["opened", "closed"]
    assert "cannot be opened" in caplog.text


def test_shutdown_callbacks_are_awaited_and_may_fail(queue, folder, caplog):
    queue.enqueue(jobs.leaves_a_callback, folder.path)
    burst(queue)
    assert folder.notes() == ["closed"]
    assert "cannot be closed" in caplog.text


def test_a_shutdown_callback_comes_after_the_last_job(queue, folder):
    queue.enqueue(jobs.waits, folder.path, "job")

    async def close() -> None:
        jobs.note(folder.path, "closed")

    with at_work(queue):
        on_shutdown(close)
        folder.wait_for("job started")
    assert folder.notes() == ["job started", "job cancelled: drained", "closed"]


def test_a_name_that_is_taken_is_refused(queue):
    with at_work(queue, name="one"), pytest.raises(ValueError, match="active worker named"):
        make_worker(queue, name="one").work()


def test_the_settings_are_its_defaults(queue, settings):
    settings.WORKER_CONCURRENCY, settings.WORKER_DRAIN_SECONDS = 7, 3
    worker = make_worker(queue)
    assert (worker.concurrency, worker.drain_seconds) == (7, 3)


# ThreadDeathPenalty


def test_the_words_of_one_time_limit_do_not_get_into_another():
    with (
        pytest.raises(JobTimeoutException, match=r"value \(0.05 seconds\)"),
        ThreadDeathPenalty(60, JobTimeoutException),
        ThreadDeathPenalty(0.05, JobTimeoutException),
    ):
        jobs.plain_loops()
    assert str(JobTimeoutException("its own words")) == "its own words"


def test_an_interrupt_before_the_block_keeps_it_from_starting():
    penalty = ThreadDeathPenalty(60)
    penalty.interrupt()
    with pytest.raises(Interrupted), penalty:
        pytest.fail("the block has started")


def test_an_interrupt_after_the_block_does_nothing():
    penalty = ThreadDeathPenalty(60)
    with penalty:
        pass
    penalty.interrupt()
    time.sleep(jobs.POLL)
