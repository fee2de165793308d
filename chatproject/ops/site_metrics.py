"""Metrics of the site that are measured at each scrape, from Redis and Postgres."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from django.conf import settings
from django.db.models import Count, Q
from prometheus_client.core import GaugeMetricFamily, Metric

from billing.ledger.audit import OVERDUE
from billing.models import Hold, LedgerCheck, ProviderEvent
from chat.runs import queue, queue_stats
from chat.webhooks import dispatch
from chatproject.lib.leadership import lease
from chatproject.lib.mail import outbox
from chatproject.lib.redis.clients import sync_client
from chatproject.ops.readiness import CLOCK


def gauge(
    name: str, meaning: str, value: float | Mapping[str, float], label: str = ""
) -> GaugeMetricFamily:
    """Return a gauge with one value, or with a value for each value of a label."""
    family = GaugeMetricFamily(f"parley_{name}", meaning, labels=[label] if label else [])
    for of, number in value.items() if isinstance(value, Mapping) else [("", value)]:
        family.add_metric([of] if label else [], number)
    return family


def of_redis(now: datetime) -> Iterator[Metric]:
    """Yield the metrics of the queues and of Redis itself. Raises redis.RedisError."""
    length = queue.length()
    taking = {name: queue.workers(now, name) for name in queue.NAMES}
    yield gauge(
        "queue_runs",
        "Runs that wait for a worker, for other runs of their user, or for a place at a provider.",
        {"queued": length.queued, "throttled": length.throttled, "waiting": length.waiting},
        "state",
    )
    yield gauge(
        "queue_limit_runs",
        "Queued runs at which new messages are refused (QUEUE_LIMIT).",
        settings.QUEUE_LIMIT,
    )
    yield gauge(
        "queue_expected_wait_seconds",
        "Expected wait of a new message; none without a measurement.",
        {} if (wait := length.expected_wait()) is None else wait,
    )
    yield gauge(
        "workers",
        "Workers that take jobs of a queue.",
        {name: sum(worker.is_taking for worker in found) for name, found in taking.items()},
        "queue",
    )
    jobs = queue.job_counts()
    yield gauge("jobs_waiting", "Jobs that wait in a queue.", jobs.waiting, "queue")
    yield gauge("jobs_failed", "Jobs that failed within a day.", jobs.failed, "queue")
    memory: Any = sync_client().info("memory")
    yield gauge("redis_memory_bytes", "Memory that Redis uses.", memory["used_memory"])
    yield gauge(
        "redis_memory_limit_bytes", "Memory that Redis may use; 0: no limit.", memory["maxmemory"]
    )
    yield gauge(
        "redis_evicts",
        "1 if Redis may evict keys, of which the queue is one, else 0.",
        float(memory["maxmemory_policy"] != "noeviction"),
    )


def of_database(now: datetime) -> Iterator[Metric]:
    """Yield the metrics of the rows. Raises one of db.UNREACHABLE."""
    active = queue_stats.active_runs(now)
    yield gauge("running_runs", "Runs that a worker makes.", active.running)
    yield gauge(
        "queue_oldest_seconds", "Wait so far of the oldest queued run.", active.oldest_wait or 0.0
    )
    leader = lease.leader(CLOCK)
    yield gauge(
        "clock_alive",
        "1 if a clock has the lease by which one of them works, else 0.",
        float(leader is not None and leader.is_alive),
    )
    yield gauge(
        "clock_lease_age_seconds",
        "Time since the clock renewed its lease; none before the first.",
        {} if leader is None else leader.age,
    )
    holds = Hold.objects.filter(status=Hold.Status.ACTIVE).aggregate(
        active=Count("pk"), overdue=Count("pk", filter=Q(expires_at__lt=now - OVERDUE))
    )
    yield gauge("holds_active", "Holds that are not resolved.", holds["active"])
    yield gauge(
        "holds_overdue", "Holds that are not resolved long after their end.", holds["overdue"]
    )
    check = LedgerCheck.objects.filter(is_full=True).first()
    yield gauge(
        "ledger_problems",
        "Problems that the newest full check of the ledger found.",
        len(check.problems) if check else 0,
    )
    yield gauge(
        "ledger_checked_timestamp_seconds",
        "Time of the newest full check of the ledger; 0: never.",
        check.ended_at.timestamp() if check else 0,
    )
    undone: dict[str, int] = dict.fromkeys(map(str, ProviderEvent.UNDONE), 0) | dict(
        ProviderEvent.objects.filter(status__in=ProviderEvent.UNDONE)
        .order_by()
        .values_list("status")
        .annotate(Count("pk"))
    )
    yield gauge("webhooks_unprocessed", "Webhooks that are not processed yet.", undone, "status")
    backlog = dispatch.backlog(now)
    yield gauge(
        "webhook_deliveries_waiting",
        "Messages of outgoing webhooks that are not delivered yet, those that will be repeated too.",
        backlog.waiting,
    )
    yield gauge(
        "webhook_deliveries_oldest_seconds",
        "Time for which the oldest message of outgoing webhooks has been due.",
        backlog.oldest,
    )
    mails = outbox.state(now)
    yield gauge("mails_waiting", "Mails of the outbox that are not sent yet.", mails.waiting)
    yield gauge("mails_failed", "Mails of the last day that were given up.", mails.failed)
    yield gauge(
        "mails_oldest_seconds", "Age of the oldest mail that is not sent yet.", mails.oldest or 0.0
    )
    yield gauge(
        "mail_server_failing",
        "1 while mails wait since the mail server is unreachable or refuses the site, else 0.",
        float(mails.is_delayed),
    )
