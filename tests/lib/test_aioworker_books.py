"""The same jobs with RQ's own worker and with ours leave the same books in Redis."""

from __future__ import annotations

import re
import signal
import time
import zlib
from base64 import b64decode
from collections.abc import Callable
from datetime import timedelta
from math import inf
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from rq import Callback, Queue, Repeat, Retry, SimpleWorker
from rq.job import Dependency
from rq.rate_limit import RateLimit
from rq.serializers import JSONSerializer
from rq.worker import BaseWorker

from chatproject.lib.aioworker import AsyncWorker
from tests.lib import aioworker_jobs as jobs
from tests.lib.aioworker_guest import GuestWorker

DATE = re.compile(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z")
# What says nothing about jobs, or differs from one run to the next.
ANYTHING = {
    b"pid",
    b"ip_address",
    b"total_working_time",
    b"execution_id",
    b"execution_started_at",
    b"execution_ended_at",
}


def enqueue_all(queue: Queue, folder: Path) -> None:
    put = queue.enqueue
    put(jobs.returns, "x", job_id="success")
    put(jobs.adds, 1, 2, job_id="plain")
    put(jobs.returns, job_id="no-result")
    put(jobs.returns_something_else, job_id="not-json")
    put(jobs.keeps_meta, job_id="meta", meta={"mine": 1}, ttl=1000, description="keeps its meta")
    for ttl in (0, -1, 700):
        put(jobs.returns, ttl, job_id=f"result-ttl-{ttl}", result_ttl=ttl)
    for ttl in (0, -1, 700):
        put(jobs.fails, job_id=f"failure-ttl-{ttl}", failure_ttl=ttl)
    put(jobs.fails, job_id="failure")
    put(jobs.plain_fails, job_id="plain-failure")
    put("tests.lib.aioworker_jobs.missing", job_id="missing")
    put(jobs.sleeps, 60, job_id="timeout", job_timeout=1)
    put(jobs.plain_loops, job_id="plain-timeout", job_timeout=1)

    for name in ("retry", "returned", "exhausted"):
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
    Queue("other", connection=queue.connection, serializer=JSONSerializer).enqueue(
        jobs.returns, job_id="dependent-elsewhere", depends_on="success"
    )

    succeeded, failed = Callback(jobs.on_success), Callback(jobs.on_failure)
    put(jobs.returns, job_id="callback-of-success", on_success=succeeded, on_failure=failed)
    put(jobs.fails, job_id="callback-of-failure", on_success=succeeded, on_failure=failed)
    put(
        jobs.returns,
        job_id="failing-callback",
        on_success=Callback(jobs.on_success_fails),
        on_failure=failed,
    )

    limit = RateLimit(key="user-1", concurrency=1)
    for number in range(3):
        put(jobs.returns, job_id=f"limited-{number}", rate_limit=limit)
    put(jobs.fails, job_id="limited-failure", rate_limit=limit)
    put(jobs.fails, job_id="limited-retry", rate_limit=limit, retry=Retry(max=1))
    put(jobs.fails, job_id="limited-later", rate_limit=limit, retry=Retry(max=1, interval=1000))


def books(url: str, folder: Path, make_worker: Callable[..., BaseWorker]) -> dict[str, Any]:
    with Redis.from_url(url) as client:
        client.flushdb()
        queue = Queue("chat", connection=client, serializer=JSONSerializer)
        enqueue_all(queue, folder)
        worker = make_worker([queue], name="worker", connection=client, serializer=JSONSerializer)
        worker.work(burst=True)
        return {key.decode(): entry(client, key, folder) for key in client.keys("rq:*")}


def entry(client: Any, key: bytes, folder: Path) -> tuple[str, str, Any]:
    """Type, time to live and value, without what differs from one run to the next."""
    kind = client.type(key).decode()
    value: Any
    if kind == "hash":
        value = {name: plain(name, text, folder) for name, text in client.hgetall(key).items()}
    elif kind == "zset":
        value = {
            name: seconds(score - time.time() if score > 0 else score)
            for name, score in client.zrange(key, 0, -1, withscores=True)
        }
    elif kind == "stream":
        value = [
            {name: plain(name, text, folder) for name, text in fields.items()}
            for _, fields in client.xrange(key)
        ]
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
    if name in ANYTHING:
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


def one_by_one(*arguments: Any, **options: Any) -> AsyncWorker:
    return GuestWorker(*arguments, concurrency=1, **options)


@pytest.fixture(autouse=True)
def rq_leaves_its_signal_handlers():
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def test_our_books_are_those_of_rq(valkey_url, tmp_path):
    rqs = books(valkey_url, tmp_path / "a", SimpleWorker)
    ours = books(valkey_url, tmp_path / "b", one_by_one)

    assert len(rqs) > 60
    assert ours == rqs


def test_the_books_are_the_same_when_many_jobs_run_at_once(valkey_url, tmp_path):
    one = books(valkey_url, tmp_path / "a", one_by_one)
    many = books(valkey_url, tmp_path / "b", AsyncWorker)

    # With RQ, too, the parent that ends first keeps it in its list until that expires.
    leftovers = {"rq:job:plain:dependents", "rq:job:no-result:dependents"}
    assert len(leftovers & one.keys()) == len(leftovers & many.keys()) == 1
    assert {key: many[key] for key in many.keys() - leftovers} == {
        key: one[key] for key in one.keys() - leftovers
    }
