"""RQ's records in Redis: the same as with RQ's own worker, and kept alive while jobs run."""

from __future__ import annotations

import re
import signal
import time
import zlib
from base64 import b64decode
from datetime import timedelta
from math import inf
from pathlib import Path
from typing import Any

import pytest
from django.urls import reverse
from django_rq import get_queue
from django_rq.settings import get_queues_map
from rq import Callback, Queue, Repeat, Retry, SimpleWorker
from rq.executions import Execution
from rq.job import Dependency, Job, JobStatus
from rq.rate_limit import RateLimit
from rq.serializers import JSONSerializer
from rq.worker import Worker

from chatproject.lib.rq_asyncio import AsyncWorker, worker
from tests.lib.rq_asyncio import jobs, workers
from tests.lib.rq_asyncio.jobs import PATIENCE, wait_until

UNKNOWN = "tests.lib.rq_asyncio.jobs.unknown"
DATE = re.compile(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z")
# Fields that are not about jobs, or differ from one run to the next.
ANYTHING = b"pid ip_address total_working_time execution_id execution_started_at execution_ended_at"


def enqueue_all(queue: Queue, folder: Path) -> None:
    put = queue.enqueue
    put(jobs.returns, "x", job_id="success")
    put(jobs.adds, 1, 2, job_id="plain")
    put(jobs.returns, job_id="no-result")
    put(jobs.returns_something_else, job_id="not-json")
    put(jobs.keeps_meta, job_id="meta", meta={"mine": 1}, ttl=1000, description="keeps its meta")
    for ttl in (0, -1, 700):
        put(jobs.returns, ttl, job_id=f"result-ttl-{ttl}", result_ttl=ttl)
        put(jobs.fails, job_id=f"failure-ttl-{ttl}", failure_ttl=ttl)
    put(jobs.fails, job_id="failure")
    put(jobs.plain_fails, job_id="plain-failure")
    for error in jobs.ERRORS:
        put(jobs.fails, error, job_id=f"failure-{error}")
    put(UNKNOWN, job_id="unknown")
    put("no.such.module", job_id="unknown-module")
    put(jobs.returns, 1, 2, job_id="wrong-arguments")
    put(jobs.returns, job_id="unreadable")
    unreadable: Any = zlib.compress(b"not JSON")
    queue.connection.hset("rq:job:unreadable", "data", unreadable)
    put(jobs.returns, job_id="no-timeout", job_timeout=-1)
    put(jobs.sleeps, 60, job_id="timeout", job_timeout=1)
    put(jobs.plain_loops, job_id="plain-timeout", job_timeout=1)

    for name in ("retry", "returned"):
        (folder / name).mkdir(parents=True)
    put(jobs.fails_until, str(folder / "retry"), 3, job_id="retry", retry=Retry(max=3))
    put(jobs.fails, job_id="retries-used-up", retry=Retry(max=2, enqueue_at_front=True))
    put(jobs.fails, job_id="retry-later", retry=Retry(max=2, interval=[1000, 2000]))
    put(jobs.returns_retry, str(folder / "returned"), 3, job_id="returned-retry")
    put(jobs.returns_endless_retry, job_id="returned-too-often")
    put(jobs.returns, job_id="repeat", repeat=Repeat(times=2))
    put(jobs.returns, job_id="repeat-later", repeat=Repeat(times=2, interval=1000))
    queue.enqueue_in(timedelta(seconds=1000), jobs.returns, job_id="scheduled")

    put(jobs.returns, job_id="dependent", depends_on="success")
    put(jobs.returns, job_id="dependent-of-two", depends_on=["plain", "no-result"])
    put(jobs.returns, job_id="dependent-of-failure", depends_on="failure")
    after = Dependency(jobs=["failure"], allow_failure=True)
    put(jobs.returns, job_id="dependent-anyway", depends_on=after)
    put(jobs.returns, job_id="dependent-of-retry", depends_on="retry")
    put(jobs.returns, job_id="grandchild", depends_on="dependent")
    other = workers.make_queue(queue.connection, "other")
    other.enqueue(jobs.returns, job_id="dependent-elsewhere", depends_on="success")

    succeeded, failed = Callback(jobs.on_success), Callback(jobs.on_failure)
    put(jobs.returns, job_id="callback-of-success", on_success=succeeded, on_failure=failed)
    put(jobs.fails, job_id="callback-of-failure", on_success=succeeded, on_failure=failed)
    hanging = Callback(jobs.on_success_hangs, timeout=1)
    failing = (Callback(jobs.on_success_fails), Callback(jobs.on_success_exits), Callback(UNKNOWN))
    for number, callback in enumerate((*failing, hanging)):
        put(jobs.returns, job_id=f"bad-callback-{number}", on_success=callback, on_failure=failed)

    limit = RateLimit(key="user-1", concurrency=1)
    for number in range(3):
        put(jobs.returns, job_id=f"limited-{number}", rate_limit=limit)
    put(jobs.fails, job_id="limited-failure", rate_limit=limit)
    put(jobs.fails, job_id="limited-retry", rate_limit=limit, retry=Retry(max=1))
    put(jobs.fails, job_id="limited-later", rate_limit=limit, retry=Retry(max=1, interval=1000))


def records(queue: Queue, folder: Path, worker_class: Any, **options: Any) -> dict[str, Any]:
    """Return all of RQ's keys, and the callbacks' calls, after a worker has performed all jobs."""
    client: Any = queue.connection
    client.flushdb()
    enqueue_all(queue, folder)
    ours = workers.make_worker(queue, worker_class=worker_class, name="worker", **options)
    ours.work(burst=True) if worker_class is SimpleWorker else workers.work(ours, burst=True)
    keys = (*client.keys("rq:*"), b"callbacks")
    return {key.decode(): entry(client, key, folder) for key in keys}


def entry(client: Any, key: bytes, folder: Path) -> tuple[str, str, Any]:
    """Return type, time to live and value, without all that differs from one run to the next."""

    def fields(values: dict[bytes, bytes]) -> dict[bytes, Any]:
        return {name: plain(name, text, folder) for name, text in values.items()}

    kind = client.type(key).decode()
    value: Any
    if kind == "hash":
        value = fields(client.hgetall(key))
    elif kind == "zset":
        value = {
            name: seconds(score - time.time() if score > 0 else score)
            for name, score in client.zrange(key, 0, -1, withscores=True)
        }
    elif kind == "stream":
        value = [fields(values) for _, values in client.xrange(key)]
    elif kind == "set":
        value = client.smembers(key)
    elif kind == "list":
        value = sorted(client.lrange(key, 0, -1))
    else:
        value = client.get(key)
    return kind, seconds(client.ttl(key)), value


def seconds(left: float) -> str:
    """Times to live of one kind; all that are used here lie far from the limits between kinds."""
    return str(left) if left in (-1, -2, inf) else f"about {round(left / 100)}00 s"


def plain(name: bytes, text: bytes, folder: Path) -> Any:
    if name in ANYTHING.split():
        return "anything"
    if name == b"exc_info":
        return last_line(zlib.decompress(text)) if text else text
    if name == b"exc_string":
        return last_line(zlib.decompress(b64decode(text)))
    if name == b"data":
        text = zlib.decompress(text)
    return DATE.sub(b"date", text).replace(str(folder).encode(), b"folder")


def last_line(text: bytes) -> bytes:
    return (text.splitlines() or [b""])[-1]


@pytest.fixture(autouse=True)
def rq_leaves_its_signal_handlers():
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def test_records_are_those_of_rq(queue, tmp_path):
    rqs = records(queue, tmp_path / "a", SimpleWorker)
    ours = records(queue, tmp_path / "b", AsyncWorker, concurrency=1)
    assert len(rqs) > 60
    assert ours == rqs


def test_concurrent_jobs_leave_the_same_records(queue, tmp_path):
    one = records(queue, tmp_path / "a", AsyncWorker, concurrency=1)
    many = records(queue, tmp_path / "b", AsyncWorker)
    workers.assert_records_are_clean(queue)
    # With RQ, too, the parent that ends first keeps it in its list until that expires.
    leftovers = {"rq:job:plain:dependents", "rq:job:no-result:dependents"}
    assert len(leftovers & one.keys()) == len(leftovers & many.keys()) == 1
    assert {key: many[key] for key in many.keys() - leftovers} == {
        key: one[key] for key in one.keys() - leftovers
    }


# While jobs run


def test_last_job_makes_the_worker_idle(queue, connection, folder, monkeypatch):
    """At once: not with the next check-in."""
    monkeypatch.setattr(worker, "CHECK_SECONDS", 2 * PATIENCE)
    with workers.running(queue, folder) as (_, ours):
        folder.go()
        wait_until(lambda: connection.hget(ours.key, "state") == b"idle")


def test_other_tools_see_its_jobs(queue, connection, folder):
    ids = {queue.enqueue(jobs.waits, folder.path, f"job {n}").id for n in range(3)}
    with workers.at_work(queue) as ours:
        folder.wait_for("job 0 started", "job 1 started", "job 2 started")
        (seen,) = Worker.all(queue=queue, serializer=JSONSerializer)
        assert (seen.name, seen.get_state()) == (ours.name, "busy")
        assert {execution.job_id for execution in seen.get_current_executions()} == ids
        assert seen.get_current_job_id() in ids
        assert seen.get_current_job().get_status() == JobStatus.STARTED
        assert set(queue.started_job_registry.get_job_ids()) == ids
        folder.go()
        wait_until(lambda: connection.hget(ours.key, "state") == b"idle")
        (seen,) = Worker.all(queue=queue)
        assert seen.successful_job_count == 3
        assert seen.get_current_job_id() is None
    assert Worker.all(queue=queue) == []


@pytest.mark.django_db(transaction=True)
def test_admin_pages_show_and_stop_jobs(admin_client, connection, folder):
    queue = get_queue("chat")
    index = get_queues_map()["chat"]
    ids = [queue.enqueue(jobs.waits, folder.path, f"job {number}").id for number in range(2)]

    def page(name: str, *arguments: Any) -> str:
        response = admin_client.get(reverse(f"admin:django_rq_{name}", args=[index, *arguments]))
        assert response.status_code == 200
        return str(response.content)

    with workers.at_work(queue) as ours:
        folder.wait_for("job 0 started", "job 1 started")
        assert ours.name in page("workers")
        assert "busy" in page("workers")
        started = page("started_jobs")
        assert all(job_id in started for job_id in ids)
        assert "started" in page("job_detail", ids[0])
        admin_client.post(reverse("admin:django_rq_stop_job", args=[index, ids[0]]))
        wait_until(lambda: queue.failed_job_registry.count == 1)
    assert queue.failed_job_registry.get_job_ids() == [ids[0]]


def test_running_jobs_have_heartbeats(queue, connection, folder):
    running = [queue.enqueue(jobs.waits, folder.path, f"job {n}") for n in range(3)]
    with workers.at_work(queue):
        folder.wait_for("job 0 started", "job 1 started", "job 2 started")
        registry = queue.started_job_registry.key
        soon = time.time() + 20
        connection.zadd(registry, dict.fromkeys(connection.zrange(registry, 0, -1), soon))
        for job in running:
            connection.hset(job.key, "last_heartbeat", "long ago")
            connection.expire(job.get_executions()[0].key, 20)

        def has_heartbeat(job: Job) -> bool:
            (execution,) = job.get_executions()
            is_late = connection.zscore(registry, execution.composite_key) > soon
            has_beaten = connection.hget(job.key, "last_heartbeat") != b"long ago"
            return bool(is_late and has_beaten and connection.ttl(execution.key) > 20)

        wait_until(lambda: all(map(has_heartbeat, running)))


def test_expired_execution_is_entered_again(queue, connection, folder):
    with workers.running(queue, folder) as (job, _):
        (before,) = job.get_executions()
        connection.delete(before.key)
        wait_until(lambda: connection.hexists(before.key, "created_at"))
        (after,) = job.get_executions()
        assert (after.id, after.created_at) == (before.id, before.created_at)


def test_job_deleted_while_it_runs_stays_deleted(queue, connection, folder):
    with workers.running(queue, folder) as (job, _):
        (execution,) = job.get_executions()
        connection.delete(job.key)
        for _ in range(2):  # heartbeats
            connection.hdel(execution.key, "last_heartbeat")
            wait_until(lambda: connection.hexists(execution.key, "last_heartbeat"))
        assert not connection.exists(job.key)


def test_job_of_a_dead_worker_fails(queue, connection):
    """With its callback, for which RQ's maintenance would use SIGALRM, which a thread cannot."""
    job = queue.enqueue(jobs.returns, on_failure=Callback(jobs.on_failure))
    dead = workers.make_worker(queue, name="dead")
    assert queue.pop_job_id() == job.id
    dead.prepare_execution(job)
    dead.prepare_job_execution(job)
    members = connection.zrange(queue.started_job_registry.key, 0, -1)
    connection.zadd(queue.started_job_registry.key, dict.fromkeys(members, 1))

    workers.burst(queue)

    assert job.get_status() == JobStatus.FAILED
    assert connection.lrange("callbacks", 0, -1) == [f"failure {job.id} AbandonedJobError".encode()]


# A Redis that loses its memory


def test_flushed_redis_gets_worker_and_jobs_again(queue, connection, folder):
    with workers.running(queue, folder) as (job, ours):
        connection.flushall()
        wait_until(lambda: queue.started_job_registry.get_job_ids() == [job.id])
        wait_until(lambda: connection.hexists(ours.key, "birth"))
        assert [seen.name for seen in Worker.all(queue=queue)] == [ours.name]
        seen = Job.fetch(job.id, connection=connection, serializer=JSONSerializer)
        assert (seen.get_status(), seen.func_name) == (JobStatus.STARTED, job.func_name)
        (execution,) = job.get_executions()
        assert Execution.fetch(execution.id, job.id, connection).worker_name == ours.name
        new = queue.enqueue(jobs.returns, "new")
        wait_until(lambda: new.is_finished)
        folder.go()
        wait_until(lambda: job.is_finished)
        assert job.return_value() == "job"
    workers.assert_records_are_clean(queue)


def test_result_after_a_flush_is_recorded(queue, connection, folder):
    with workers.running(queue, folder) as (job, _):
        connection.flushall()
        folder.go()
        wait_until(lambda: connection.hget(job.key, "status") == b"finished")
        assert job.return_value() == "job"
        assert queue.finished_job_registry.get_job_ids() == [job.id]


def test_job_flushed_in_its_callback_counts_as_started(queue, connection, folder):
    callback = Callback(jobs.on_success_waits)
    job = queue.enqueue(jobs.returns, folder.path, on_success=callback)
    with workers.at_work(queue):
        folder.wait_for("callback started")
        connection.flushall()
        wait_until(lambda: connection.hexists(job.key, "data"))
        assert job.get_status() == JobStatus.STARTED
        folder.go()
        wait_until(lambda: job.is_finished)
