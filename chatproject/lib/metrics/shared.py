"""Metrics of all processes together, through Redis (docs/adr/ explains the choice).

Each process adds the gains of its counters and histograms to Redis, every few seconds and at its end,
and stores its gauges. So a total is the same whichever web process is scraped, includes processes
on other machines, and does not go down when a process ends.

    metrics:totals     hash; the sum over all processes, also ended ones, of each series
    metrics:processes  hash; by process: time, number of its last batch, role and gauges
"""

from __future__ import annotations

import atexit
import logging
import os
import secrets
import socket
import threading
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import msgspec
import redis
from prometheus_client.core import GaugeMetricFamily, Metric
from redis.commands.core import Script

from chatproject.lib.metrics import PROCESS, REGISTRY
from chatproject.lib.redis.clients import sync_client

logger = logging.getLogger(__name__)

TOTALS = "metrics:totals"
PROCESSES = "metrics:processes"

# Seconds.
EVERY = 5
STALE = 4 * EVERY  # a process without a batch for this long is no longer counted
PROCESS_KEPT = 60 * 60  # so long a batch is recognised as a repetition
TOTALS_KEPT = 30 * 24 * 60 * 60  # after the last batch of any process

ROLES = ("web", "worker", "clock")

Series = tuple[str, tuple[tuple[str, str], ...]]
"""A sample's name and its labels in order."""

# A batch whose answer was lost is sent again: the number of the last one tells a repetition apart.
ADD = """
local last = redis.call('HGET', KEYS[2], ARGV[1])
local is_new = not last or string.match(last, '^%d+ (%d+) ') ~= ARGV[2]
local now = redis.call('TIME')[1]
redis.call('HSET', KEYS[2], ARGV[1], now .. ' ' .. ARGV[2] .. ' ' .. ARGV[3])
redis.call('EXPIRE', KEYS[2], ARGV[4])
if is_new then
  for i = 6, #ARGV, 2 do redis.call('HINCRBYFLOAT', KEYS[1], ARGV[i], ARGV[i + 1]) end
end
redis.call('EXPIRE', KEYS[1], ARGV[5])
"""


class Presence(msgspec.Struct, frozen=True):
    """A process as it last reported itself."""

    role: str
    gauges: list[tuple[Series, float]]


@dataclass(frozen=True, slots=True)
class Batch:
    """The values of all series at one time, and their gains since the batch before."""

    number: int
    presence: bytes
    totals: dict[Series, float]
    gains: dict[Series, float]


class Publisher:
    """Publishes the metrics of this process, of which it is the only one; see `start`."""

    def __init__(self) -> None:
        # Host and process id alone may return, after a restart in a container.
        self._process = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        self._number = 0
        self._published: dict[Series, float] = {}
        self._unanswered: Batch | None = None
        self._lock = threading.Lock()
        self._stopped = threading.Event()

    def start(self) -> None:
        """Publish from a thread of its own, until `stop`."""
        self._stopped.clear()
        threading.Thread(target=self._publish_often, name="metrics", daemon=True).start()

    def stop(self) -> None:
        """Publish a last time, as a process that has ended."""
        if not self._stopped.is_set():
            self._stopped.set()
            self._publish_safely()

    def _publish_often(self) -> None:
        while not self._stopped.is_set():
            self._publish_safely()
            self._stopped.wait(EVERY)

    def _publish_safely(self) -> None:
        try:
            self.publish()
        except redis.RedisError as error:
            logger.debug("the metrics wait for Redis: %s", error)  # nothing is lost meanwhile
        except Exception:
            logger.exception("the metrics were not published")

    def publish(self) -> None:
        """Add the gains since the last call. Raises redis.RedisError; then the next call adds them."""
        with self._lock:
            if self._unanswered is not None:
                self._send(self._unanswered)
            self._send(self._measure())

    def _measure(self) -> Batch:
        totals: dict[Series, float] = {}
        gauges: list[tuple[Series, float]] = []
        for metric in REGISTRY.collect():
            for sample in metric.samples:
                series = sample.name, tuple(sorted(sample.labels.items()))
                if metric.type == "gauge":
                    gauges.append((series, sample.value))
                elif not sample.name.endswith("_created"):
                    totals[series] = sample.value
        # A new series is added with 0 as well: without it the first gain would be no increase.
        gains = {
            series: value - self._published.get(series, 0.0)
            for series, value in totals.items()
            if value != self._published.get(series)
        }
        self._number += 1
        # A process that ends has no sockets and no connections any longer.
        presence = Presence("" if self._stopped.is_set() else PROCESS.role, gauges)
        return Batch(self._number, msgspec.json.encode(presence), totals, gains)

    def _send(self, batch: Batch) -> None:
        self._unanswered = batch
        gains = [part for gain in batch.gains.items() for part in (encode(gain[0]), repr(gain[1]))]
        add_script()(
            keys=[TOTALS, PROCESSES],
            args=[self._process, batch.number, batch.presence, PROCESS_KEPT, TOTALS_KEPT, *gains],
        )
        self._published = batch.totals
        self._unanswered = None


def encode(series: Series) -> bytes:
    """Return a series as the name of a field in TOTALS."""
    return msgspec.json.encode(series)


@cache
def add_script() -> Script:
    """Return the script ADD, which redis-py loads into Redis when that lacks it."""
    return sync_client().register_script(ADD)


def start(role: str) -> Publisher:
    """Publish the metrics of this process until its end; `role` is one of ROLES."""
    PROCESS.role = role
    publisher = process_publisher()
    publisher.start()
    return publisher


@cache
def process_publisher() -> Publisher:
    """Return the publisher of this process, which also publishes at its exit."""
    publisher = Publisher()
    atexit.register(publisher.stop)
    return publisher


def collect() -> Iterator[Metric]:
    """Yield the metrics of all processes. Raises redis.RedisError."""
    pipeline = sync_client().pipeline(transaction=False)
    pipeline.hgetall(TOTALS)
    pipeline.hgetall(PROCESSES)
    pipeline.time()
    totals, processes, (now, _) = pipeline.execute()
    values: dict[Series, float] = defaultdict(float)
    roles = dict.fromkeys(ROLES, 0)
    for stored in processes.values():
        at, _, presence = stored.split(b" ", 2)
        found = msgspec.json.decode(presence, type=Presence)
        if int(at) >= now - STALE and found.role:
            roles[found.role] = roles.get(found.role, 0) + 1
            for series, value in found.gauges:
                values[series] += value
    for field, value in totals.items():
        values[msgspec.json.decode(field, type=Series)] += float(value)
    by_name: dict[str, list[tuple[Series, float]]] = defaultdict(list)
    for series, value in values.items():
        by_name[series[0]].append((series, value))
    for metric in REGISTRY.collect():
        whole = Metric(metric.name, metric.documentation, metric.type)
        for suffix in ("", "_total", "_bucket", "_count", "_sum"):
            for (name, labels), value in sorted(by_name[metric.name + suffix], key=in_order):
                whole.add_sample(name, dict(labels), value)
        yield whole
    running = GaugeMetricFamily("parley_processes", "Running processes.", labels=["role"])
    for role, number in roles.items():
        running.add_metric([role], number)
    yield running


def in_order(item: tuple[Series, float]) -> tuple[list[tuple[str, str]], float]:
    """Sort samples by their labels, and the buckets of a histogram by their bounds."""
    labels = dict(item[0][1])
    bound = float(labels.pop("le", 0))
    return sorted(labels.items()), bound
