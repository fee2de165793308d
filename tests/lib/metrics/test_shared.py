"""Totals of all processes in Redis: exact after ends, restarts, outages and lost answers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis
from prometheus_client.core import Metric

from chatproject.lib import metrics
from chatproject.lib.metrics import shared
from chatproject.lib.metrics.shared import Publisher

pytestmark = pytest.mark.usefixtures("valkey_url")


@pytest.fixture(autouse=True)
def role() -> Iterator[None]:
    metrics.PROCESS.role = "worker"
    yield
    metrics.PROCESS.role = ""


def collected() -> dict[str, Metric]:
    return {metric.name: metric for metric in shared.collect()}


def value(name: str, **labels: str) -> float | None:
    """The value of a sample as a scrape has it."""
    for metric in collected().values():
        for sample in metric.samples:
            if sample.name == name and sample.labels == labels:
                return sample.value
    return None


def test_gains_of_processes_are_added():
    one, other = Publisher(), Publisher()
    one.publish()
    other.publish()
    before = value("parley_runs_stored_total")
    metrics.RUNS_STORED.inc(3)  # both count it, as two processes with the same figures would
    one.publish()
    one.publish()
    other.publish()
    assert value("parley_runs_stored_total") == before + 6


def test_total_survives_its_process_and_a_restart():
    ended = Publisher()
    metrics.RUNS_STORED.inc()
    ended.publish()
    before = value("parley_runs_stored_total")
    metrics.RUNS_STORED.inc()
    ended.stop()
    assert value("parley_runs_stored_total") == before + 1
    assert value("parley_processes", role="worker") == 0
    Publisher().publish()
    assert value("parley_runs_stored_total") > before + 1
    assert value("parley_processes", role="worker") == 1


def test_batch_with_lost_answer_counts_once(monkeypatch):
    publisher = Publisher()
    publisher.publish()
    before = value("parley_runs_stored_total")
    metrics.RUNS_STORED.inc()
    script = shared.add_script()

    def lose_the_answer(**arguments):
        script(**arguments)
        raise redis.TimeoutError("lost")

    with monkeypatch.context() as patch:
        patch.setattr(shared, "add_script", lambda: lose_the_answer)
        with pytest.raises(redis.TimeoutError):
            publisher.publish()
    metrics.RUNS_STORED.inc()
    publisher.publish()
    assert value("parley_runs_stored_total") == before + 2


def test_gains_during_an_outage_are_added_later(monkeypatch):
    publisher = Publisher()
    publisher.publish()
    before = value("parley_runs_stored_total")

    def fail(**arguments):
        raise redis.ConnectionError("refused")

    with monkeypatch.context() as patch:
        patch.setattr(shared, "add_script", lambda: fail)
        for _ in range(3):
            metrics.RUNS_STORED.inc()
            with pytest.raises(redis.ConnectionError):
                publisher.publish()
    publisher.publish()
    assert value("parley_runs_stored_total") == before + 3


def test_totals_begin_again_after_a_flush(valkey_client):
    publisher = Publisher()
    metrics.RUNS_STORED.inc()
    publisher.publish()
    valkey_client.flushall()
    metrics.RUNS_STORED.inc(2)
    publisher.publish()
    assert value("parley_runs_stored_total") == 2


def test_gauges_are_summed_over_running_processes(valkey_client):
    metrics.OPEN_SOCKETS.set(4)
    one, other = Publisher(), Publisher()
    one.publish()
    other.publish()
    assert value("parley_open_sockets") == 8
    stored = valkey_client.hget(shared.PROCESSES, one._process)
    at, rest = stored.split(b" ", 1)
    silent = b"%d %b" % (int(at) - shared.STALE - 1, rest)
    valkey_client.hset(shared.PROCESSES, one._process, silent)
    assert value("parley_open_sockets") == 4
    other.stop()
    assert value("parley_open_sockets") is None
    metrics.OPEN_SOCKETS.set(0)


def test_histogram_buckets_are_ordered_and_cumulative():
    publisher = Publisher()
    for seconds in (0.002, 0.3, 7.0):
        metrics.TICK.observe(seconds)
    publisher.publish()
    samples = collected()["parley_tick_seconds"].samples
    buckets = [sample for sample in samples if sample.name.endswith("_bucket")]
    bounds = [float(sample.labels["le"]) for sample in buckets]
    counts = [sample.value for sample in buckets]
    assert bounds == sorted(bounds)
    assert counts == sorted(counts)
    assert counts[-1] == value("parley_tick_seconds_count")


def test_new_series_begin_at_zero():
    """A first gain is an increase only if the series was there before."""
    metrics.RATE_LIMITED.labels("never")
    Publisher().publish()
    assert value("parley_rate_limited_total", limit="never") == 0


def test_keys_of_metrics_expire(valkey_client):
    Publisher().publish()
    assert valkey_client.ttl(shared.TOTALS) > 0
    assert valkey_client.ttl(shared.PROCESSES) > 0
