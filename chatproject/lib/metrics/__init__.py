"""Metrics of each process, all in one registry; `shared` adds those of all processes together.

docs/operations/metrics.md lists each with its meaning. Nothing is observed per token: only per tick,
run or request. The values of every label are bounded by the code or by the catalogue.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

REGISTRY = CollectorRegistry()

# Buckets in seconds: of work within a process, of a request, and of waits that may take minutes.
SHORT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)
REQUEST = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0)
LONG = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


def counter(name: str, meaning: str, *labels: str) -> Counter:
    return Counter(f"parley_{name}", meaning, labels, registry=REGISTRY)


def gauge(name: str, meaning: str, *labels: str) -> Gauge:
    """A gauge of this process; the processes' values are added up."""
    return Gauge(f"parley_{name}", meaning, labels, registry=REGISTRY)


def histogram(name: str, meaning: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
    return Histogram(f"parley_{name}", meaning, labels, buckets=buckets, registry=REGISTRY)


# --- Pages and sockets ------------------------------------------------------------------------

HTTP_REQUESTS = counter(
    "http_requests_total", "Requests by part of the site and status.", "area", "status"
)
HTTP_SECONDS = histogram(
    "http_request_seconds", "Time from a request to the end of its response.", REQUEST, "area"
)
OPEN_SOCKETS = gauge("open_sockets", "Open sockets.")
SOCKETS_OPENED = counter("sockets_opened_total", "Sockets that were opened.")
SOCKETS_CLOSED = counter("sockets_closed_total", "Sockets that the server closed.", "code")
DELIVERY = histogram(
    "delivery_seconds",
    "Time from the worker's tick to the follower's socket, for a sample of the events.",
    SHORT,
)
EVENTS_DROPPED = counter(
    "live_events_dropped_total", "Live events that no host of the channel layer accepted."
)
RATE_LIMITED = counter(
    "rate_limited_total", "Requests, messages and frames refused by a limit.", "limit"
)
RATE_LIMITS_UNCOUNTED = counter(
    "rate_limits_uncounted_total",
    "Uses of a limit that were not counted, as Redis was unreachable.",
    "limit",
    "outcome",
)

# --- Runs -------------------------------------------------------------------------------------

RUNS_STORED = counter("runs_stored_total", "Runs that were stored and queued.")
RUNS_ENDED = counter("runs_ended_total", "Runs that ended.", "outcome", "code", "cause")
PUSH_MESSAGES = counter(
    "push_messages_total", "Notifications to devices, by their result.", "result"
)
WEBHOOK_DELIVERIES = counter(
    "webhook_deliveries_total",
    "Attempts to deliver a message of an outgoing webhook: delivered, retried or failed.",
    "outcome",
)
RUN_WAIT = histogram(
    "run_wait_seconds", "Time from the request to the claim by a worker, of first attempts.", LONG
)
FIRST_TOKEN = histogram(
    "first_token_seconds", "Time from the request to the first token, of first attempts.", LONG
)
RUN_SECONDS = histogram("run_seconds", "Time from the last claim to the end of a run.", LONG)
SLOW_RUNS = counter("slow_runs_total", "Runs that came close to their time limit.")
ATTEMPTS_LOST = counter("attempts_lost_total", "Attempts whose worker died.")
ATTEMPTS_HANDED_OVER = counter(
    "attempts_handed_over_total", "Attempts that a worker gave up since it had to exit."
)
TICK = histogram("tick_seconds", "Time of one write of the events of a worker's runs.", SHORT)
TICK_FAILURES = counter(
    "tick_failures_total", "Writes of events that failed; the events are written again."
)
PROVIDER_REQUESTS = counter(
    "provider_requests_total",
    "Requests to a model provider: `ok`, `cancelled`, `adapted`, or the error's cause.",
    "provider",
    "outcome",
)
PROVIDER_FIRST_EVENT = histogram(
    "provider_first_event_seconds",
    "Time from a request to a model provider to the first event of its answer.",
    LONG,
    "provider",
)

# --- Money ------------------------------------------------------------------------------------

MONEY_RETRIES = counter(
    "money_retries_total", "Money transactions that were retried after a lock error.", "sqlstate"
)
MONEY_BUSY = counter("money_busy_total", "Money transactions that failed after all their tries.")
MONEY_SHORTFALL = counter(
    "money_shortfall_microcredits_total", "Cost of runs that could not be charged."
)

# --- Processes --------------------------------------------------------------------------------

LOOP_LAG = histogram(
    "loop_lag_seconds",
    "Lag of the event loop's beat.",
    (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0),
    "role",
)
LOOP_BLOCKS = counter("loop_blocks_total", "Blocks of the event loop.", "role")
CLOCK_FAILURES = counter("clock_task_failures_total", "Tasks of the clock that failed.", "task")
MAILS = counter("mails_total", "Attempts to send a mail: sent, delayed or failed.", "outcome")
BUSINESS_EVENTS = counter("events_total", "Business events, as the log has them.", "event")


class ProcessCollector:
    """Processor time and memory of this process; its `role` is set when it starts."""

    role = ""

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics; memory is 0 where /proc is missing (not Linux)."""
        seconds = CounterMetricFamily(
            "parley_process_cpu_seconds", "Processor time of the processes.", labels=["role"]
        )
        memory = GaugeMetricFamily(
            "parley_process_resident_bytes", "Resident memory of the processes.", labels=["role"]
        )
        if self.role:
            seconds.add_metric([self.role], time.process_time())
            memory.add_metric([self.role], resident_bytes())
        yield seconds
        yield memory


def resident_bytes() -> int:
    """Return the resident memory of this process; 0 where /proc is missing (not Linux)."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


PROCESS = ProcessCollector()
REGISTRY.register(PROCESS)
