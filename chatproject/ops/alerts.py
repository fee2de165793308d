"""Alerts for sites without Prometheus: the clock checks the main rules of deploy/prometheus/alerts.yml.

They have the same names there, and are computed from the same figures as /metrics.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import NamedTuple

import redis
from django.conf import settings

from chatproject.lib import alerts
from chatproject.lib.redis.clients import sync_client
from chatproject.ops.metrics import SiteCollector

logger = logging.getLogger(__name__)

EVERY = 60  # seconds between two checks
WINDOW = timedelta(minutes=10)  # over which the growth of a counter is measured
COOLDOWN = timedelta(hours=4)  # before an alert that still fires is sent again
PREFIX = "alert"  # of the keys in Redis that remember which alerts were sent


Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]
"""Values by name and labels."""


class Figures:
    """The samples of one scrape, and of an earlier one."""

    def __init__(self, now: datetime, samples: Samples, before: Samples | None) -> None:
        self.now = now
        self._samples = samples
        self._before = before

    def value(self, name: str, **labels: str) -> float:
        """Return the sum of a metric's samples with these labels; 0 when there are none."""
        return _sum(self._samples, name, labels)

    def has(self, name: str) -> bool:
        """Return whether the scrape has a metric."""
        return any(sample == f"parley_{name}" for sample, _ in self._samples)

    def increase(self, name: str, **labels: str) -> float:
        """Return by how much a counter has grown within WINDOW; 0 until it was seen twice."""
        if self._before is None:
            return 0.0
        now = _sum(self._samples, name, labels)
        gain = now - _sum(self._before, name, labels)
        return gain if gain >= 0 else now  # Redis lost the totals, which began again at 0


def _sum(samples: Samples, name: str, labels: dict[str, str]) -> float:
    wanted = set(labels.items())
    return sum(
        value for (of, its), value in samples.items() if of == f"parley_{name}" and wanted <= its
    )


# --- The rules --------------------------------------------------------------------------------


class Rule(NamedTuple):
    """An alert: it is sent when `fires` was true for `minutes`."""

    name: str
    minutes: int
    fires: Callable[[Figures], bool]
    text: str


def runs_fail(figures: Figures) -> bool:
    failed = figures.increase("runs_ended_total", outcome="failed")
    return failed > 5 and failed > 0.1 * figures.increase("runs_ended_total")


def pages_fail(figures: Figures) -> bool:
    areas = ("accounts", "admin", "billing", "chat")
    codes = ("500", "502", "503", "504")
    failed = sum(
        figures.increase("http_requests_total", area=area, status=code)
        for area in areas
        for code in codes
    )
    pages = sum(figures.increase("http_requests_total", area=area) for area in areas)
    return failed > 5 and failed > 0.01 * pages


def provider_is_set_up_wrong(figures: Figures) -> bool:
    causes = ("address", "key", "quota", "model")
    return any(figures.increase("provider_requests_total", outcome=cause) for cause in causes)


def memory_is_short(figures: Figures) -> bool:
    limit = figures.value("redis_memory_limit_bytes")
    return 0 < 0.9 * limit < figures.value("redis_memory_bytes")


def queue_is_full(figures: Figures) -> bool:
    limit = figures.value("queue_limit_runs")
    return 0 < 0.8 * limit < figures.value("queue_runs", state="queued")


def ledger_is_unchecked(figures: Figures) -> bool:
    checked = figures.value("ledger_checked_timestamp_seconds")
    return (
        figures.has("ledger_checked_timestamp_seconds")
        and figures.now.timestamp() - checked > 36 * 3600
    )


def lacks_job_workers(figures: Figures) -> bool:
    queues = ("billing", "low")
    return figures.has("workers") and not all(figures.value("workers", queue=q) for q in queues)


RULES = (
    Rule(
        "ParleyRedisUnreachable",
        1,
        lambda figures: not figures.value("redis_up"),
        "Redis does not answer. New messages are refused; replies and credits are not lost.",
    ),
    Rule(
        "ParleyRedisEvicts",
        0,
        lambda figures: figures.value("redis_evicts") > 0,
        "Redis may evict keys, and with them the queue. Set maxmemory-policy to noeviction.",
    ),
    Rule(
        "ParleyRedisMemory",
        5,
        memory_is_short,
        "Redis has used more than 90 % of its memory. A full Redis refuses new messages.",
    ),
    Rule(
        "ParleyNoWorker",
        1,
        lambda figures: figures.has("workers") and not figures.value("workers", queue="chat"),
        "No worker makes replies. Start one: manage.py rqworker chat.",
    ),
    Rule(
        "ParleyNoJobWorker",
        5,
        lacks_job_workers,
        "No worker takes the jobs of payments or mails. Start one: manage.py rqworker billing insights"
        " index low.",
    ),
    Rule(
        "ParleyRunsFail",
        2,
        runs_fail,
        "More than a tenth of the replies fail. Filter the admin's list of runs by error.",
    ),
    Rule(
        "ParleyProviderSetUp",
        0,
        provider_is_set_up_wrong,
        "A model provider refuses requests because of its address, key, quota or model. Press Test on its"
        " page in the admin.",
    ),
    Rule(
        "ParleyQueueWaits",
        5,
        lambda figures: figures.value("queue_expected_wait_seconds") > 30,
        "A new message waits for more than 30 seconds. Start more workers.",
    ),
    Rule(
        "ParleyQueueFull",
        1,
        queue_is_full,
        "The queue is nearly full. At QUEUE_LIMIT new messages are refused. Start more workers.",
    ),
    Rule(
        "ParleyRunsSlow",
        0,
        lambda figures: figures.increase("slow_runs_total") > 5,
        "Replies take nearly as long as RUN_SECONDS allows.",
    ),
    Rule(
        "ParleyWorkersDie",
        0,
        lambda figures: figures.increase("attempts_lost_total") > 3,
        "Workers died while they made replies, which were begun again. Look for processes that were"
        " killed (out of memory).",
    ),
    Rule(
        "ParleyLiveEventsDropped",
        5,
        lambda figures: figures.increase("live_events_dropped_total") > 100,
        "Live events are dropped, so replies arrive late. Check the Redis servers of"
        " CHANNEL_LAYER_URLS.",
    ),
    Rule(
        "ParleyPagesFail",
        2,
        pages_fail,
        "More than 1 % of the pages are answered with an error of the server. Read the log of the web"
        " processes.",
    ),
    Rule(
        "ParleyLedgerMismatch",
        0,
        lambda figures: figures.value("ledger_problems") > 0,
        "The check of the ledger found problems. Follow docs/operations/money.md.",
    ),
    Rule(
        "ParleyLedgerUnchecked",
        60,
        ledger_is_unchecked,
        "The ledger was not checked for more than a day. Check the worker of the queue billing.",
    ),
    Rule(
        "ParleyHoldsOverdue",
        15,
        lambda figures: figures.value("holds_overdue") > 0,
        "Holds were not resolved after their end. Check the worker of the queue billing.",
    ),
    Rule(
        "ParleyMoneyBusy",
        0,
        lambda figures: figures.increase("money_busy_total") > 0,
        "Money transactions failed after all their tries. Look for locks in Postgres.",
    ),
    Rule(
        "ParleyWebhooksWait",
        15,
        lambda figures: figures.value("webhooks_unprocessed") > 0,
        "Webhooks of payment providers are not processed. Read their errors in the admin.",
    ),
    Rule(
        "ParleyWebhookDeliveriesWait",
        10,
        lambda figures: (
            figures.value("webhook_deliveries_oldest_seconds") > 900
            and not figures.increase("webhook_deliveries_total")
        ),
        "No message of the users' webhooks is sent. Check the clock and the worker of the queue low.",
    ),
    Rule(
        "ParleyMailsWait",
        10,
        lambda figures: (
            figures.value("mail_server_failing") > 0 or figures.value("mails_oldest_seconds") > 900
        ),
        "Mails are not sent. Read the errors of the outbox in the admin.",
    ),
)


class AlertCheck:
    """Remembers between two checks since when rules fire, and earlier figures."""

    def __init__(self) -> None:
        self._since: dict[str, datetime] = {}
        self._sent: dict[str, datetime] = {}
        self._history: deque[tuple[datetime, Samples]] = deque()

    def check(self, now: datetime) -> None:
        """Send the alerts that have become due. Without recipients nothing is checked."""
        if not settings.ALERT_EMAIL and not settings.ALERT_WEBHOOK_URL:
            return
        samples: Samples = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for metric in SiteCollector().collect()
            for sample in metric.samples
        }
        while self._history and self._history[0][0] < now - WINDOW:
            self._history.popleft()
        figures = Figures(now, samples, self._history[0][1] if self._history else None)
        # Without Redis the counters are missing, which would look like a new beginning.
        if figures.value("redis_up"):
            self._history.append((now, samples))
        for rule in RULES:
            if not rule.fires(figures):
                self._since.pop(rule.name, None)
            elif now - self._since.setdefault(rule.name, now) >= timedelta(minutes=rule.minutes):
                self._send(rule, now)

    def _send(self, rule: Rule, now: datetime) -> None:
        if rule.name in self._sent and now - self._sent[rule.name] < COOLDOWN:
            return
        self._sent[rule.name] = now
        try:
            # Another clock, or this one before a restart, may have sent it.
            is_new = sync_client().set(f"{PREFIX}:{rule.name}", "1", nx=True, ex=COOLDOWN)
        except redis.RedisError as error:
            logger.warning("an alert may be sent twice: %s", error)
            is_new = True
        if is_new:
            alerts.send(rule.name, rule.text, settings.ALERT_EMAIL)
