"""The processes beside the web: workers of each queue, the clock, and the age of the queue."""

from __future__ import annotations

from collections.abc import Iterator

from django.db.models import Min
from django.utils import timezone

from billing.queue import QUEUE as BILLING
from chat.models import Run
from chat.runs import queue
from chatproject.lib.leadership import lease
from chatproject.lib.mail.outbox import QUEUE as LOW
from chatproject.ops import readiness
from chatproject.ops.doctor.finding import Finding, ok, problem, warning

LONG_WAIT = 60.0  # seconds of the oldest queued message

SERIALIZER = "--serializer rq.serializers.JSONSerializer"


def check_workers() -> Iterator[Finding]:
    """Yield the findings about the workers. Raises redis.RedisError."""
    now = timezone.now()
    taking = [worker for worker in queue.workers(now) if worker.is_taking]
    if taking:
        yield ok("worker", f"{len(taking)} running, {sum(each.jobs for each in taking)} replies")
    else:
        found, _, advice = readiness.NO_WORKER.partition(". ")
        yield problem("worker", found, advice)
    for name, uses in ((LOW, "mails are not sent"), (BILLING, "payments are not followed")):
        if not any(worker.is_taking for worker in queue.workers(now, of=name)):
            yield problem(
                "worker",
                f"no worker serves the queue {name}: {uses}",
                f"Start manage.py rqworker billing insights index low {SERIALIZER}.",
            )
    oldest = (
        Run.objects.active().filter(status=Run.Status.QUEUED).aggregate(at=Min("queued_at"))["at"]
    )
    wait = 0.0 if oldest is None else (now - oldest).total_seconds()
    if wait > LONG_WAIT:
        yield warning(
            "queue",
            f"the oldest message waits for {wait:.0f} s",
            "Start more workers, or see the live queue in the admin for a user with many messages.",
        )
    else:
        yield ok("queue", f"the oldest message waits for {wait:.0f} s" if oldest else "empty")


def check_clock() -> Iterator[Finding]:
    """Yield whether a clock works. Raises db.UNREACHABLE."""
    leader = lease.leader(readiness.CLOCK)
    if leader and leader.is_alive:
        yield ok("clock", f"{leader.name} works")
    else:
        found, _, advice = readiness.NO_CLOCK.partition(". ")
        since = f" (the last one stopped {leader.age:.0f} s ago)" if leader else ""
        yield problem("clock", f"{found}{since}", advice)
