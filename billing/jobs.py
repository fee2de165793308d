"""The queue of billing: what is put into it, and the entry points that workers call.

Ids, never objects, travel in a job. Whatever a lost job would have done, `poll` finds again in
Postgres. This is the only module of billing that knows RQ.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from functools import cache
from uuid import UUID

import django_rq
import redis
from django.conf import settings
from django.db import transaction
from django.db.models import DateTimeField, ExpressionWrapper, F, Q
from django.db.models.expressions import Combinable
from django.utils import timezone
from rq.job import Job, JobStatus
from rq.queue import Queue

from billing.models import Order, ProviderEvent, Refund
from chatproject.lib.redis.clients import sync_client

logger = logging.getLogger(__name__)

QUEUE = "billing"

# An event whose job has not begun after this time is put into the queue again.
EVENT_PATIENCE = timedelta(seconds=30)
# After being put into the queue by `poll`, an event, a refund waits so long for its job.
POLL_PAUSE = timedelta(minutes=1)
# How long after its making an open order's provider is asked. Banks may answer after three days.
ORDER_AGES = (
    timedelta(minutes=2),
    timedelta(minutes=10),
    timedelta(hours=1),
    timedelta(hours=24),
    timedelta(hours=72),
)
# A refund whose fate is unknown, and one that the provider is working on.
REFUND_PAUSE = timedelta(minutes=2)
REFUND_PATIENCE = timedelta(hours=1)

POLL_MOST = 200  # of each kind in one turn

TASK_SECONDS = 600  # time limit of a task of the clock


# --- Entry points; what they need is imported by the worker alone -----------------------------


def process_event(event_id: int, attempt: int) -> None:
    """Process a stored webhook, unless another job has begun that attempt."""
    from billing import events

    events.process(event_id, attempt)


def sync_order(order_id: str) -> None:
    """Ask the provider how an order stands; an automatic one may have to be charged first."""
    from billing import checkout, top_up

    order = Order.objects.get(pk=order_id)
    if order.kind == Order.Kind.AUTO and order.provider_order_id is None:
        top_up.charge(order.pk)
    else:
        checkout.sync_order(order.pk)


def ask_refund(refund_id: str) -> None:
    """Find out what became of a refund, and ask for it again if the provider knows of none."""
    from billing import checkout, refunds

    refund = Refund.objects.get(pk=refund_id)
    checkout.sync_order(refund.order_id)
    refunds.send(refund.pk)


def send_receipt(order_id: str) -> None:
    """Mail a buyer the receipt of an order."""
    from billing import mail

    mail.send_receipt(UUID(order_id))


def send_refunded(refund_id: str) -> None:
    """Mail a buyer that money is on its way back."""
    from billing import mail

    mail.send_refunded(UUID(refund_id))


def top_up(account_id: int) -> None:
    """Buy credits for an account whose balance is low, if its owner agreed to that."""
    from billing import top_up

    top_up.check(account_id)


def run_task(name: str) -> None:
    """Do a task of billing.schedule."""
    from billing import schedule

    schedule.run(name)


def tell_of_sandbox(payment_id: str, event_type: str) -> None:
    """Send a webhook of the sandbox's bank to ourselves."""
    from billing.providers import sandbox

    sandbox.send_webhook(payment_id, event_type)


# --- Enqueueing. But for mails, all raise redis.RedisError when the queue is not reachable ------


def enqueue_event(event_id: int, attempt: int) -> None:
    """Have an event processed for the `attempt`-th time, counted from 0."""
    _enqueue("process_event", event_id=event_id, attempt=attempt)


def enqueue_sync(order_id: UUID) -> None:
    """Have the provider asked about an order."""
    _enqueue("sync_order", order_id=str(order_id))


def enqueue_refund(refund_id: UUID) -> None:
    """Have the provider asked about a refund."""
    _enqueue("ask_refund", refund_id=str(refund_id))


def enqueue_receipt(order_id: UUID) -> None:
    """Have the receipt of an order mailed; at once when the queue is away, as nothing repeats it."""
    try:
        _enqueue("send_receipt", order_id=str(order_id))
    except redis.RedisError as error:
        logger.warning("the receipt of order %s is mailed without the queue: %s", order_id, error)
        send_receipt(str(order_id))


def enqueue_refunded(refund_id: UUID) -> None:
    """Have the mail about a refund sent; at once when the queue is away, as nothing repeats it."""
    try:
        _enqueue("send_refunded", refund_id=str(refund_id))
    except redis.RedisError as error:
        logger.warning("the mail of refund %s is sent without the queue: %s", refund_id, error)
        send_refunded(str(refund_id))


def enqueue_top_up(account_id: int) -> None:
    """Have it decided whether credits are bought for an account by themselves."""
    _enqueue("top_up", account_id=account_id)


def enqueue_task(name: str) -> None:
    """Have a task of billing.schedule done, unless it waits for a worker or is with one already."""
    queue = _queue()
    job_id = f"task-{name.replace(' ', '-')}"
    [found] = Job.fetch_many([job_id], connection=queue.connection, serializer=queue.serializer)
    if found is not None:
        if _is_underway(found):
            return
        # What is left of the last time would otherwise be listed beside the new one.
        found.delete()
    queue.enqueue_call(
        func="billing.jobs.run_task",
        kwargs={"name": name},
        job_id=job_id,
        timeout=TASK_SECONDS,
        description=name,
    )


def _is_underway(job: Job) -> bool:
    status = job.get_status(refresh=False)
    if status == JobStatus.QUEUED:
        # The job's own record says so, but only the list is what workers read.
        return _queue().get_job_position(job.id) is not None
    if status == JobStatus.STARTED:
        # Its worker may have died; one that lives was stopped by its timeout.
        started = job.started_at
        patience = timedelta(seconds=TASK_SECONDS + 60)
        return started is not None and datetime.now(UTC) - started < patience
    return False


def enqueue_sandbox(payment_id: str, event_type: str) -> None:
    """Have the sandbox's bank send a webhook."""
    _enqueue("tell_of_sandbox", payment_id=payment_id, event_type=event_type)


def _enqueue(name: str, **arguments: str | int) -> None:
    _queue().enqueue_call(
        func=f"billing.jobs.{name}",
        kwargs=arguments,
        description=" ".join([name.replace("_", " "), *map(str, arguments.values())]),
    )


@cache
def _queue() -> Queue:
    # Enqueued at once: callers do it on commit themselves, where there is something to commit.
    return django_rq.get_queue(QUEUE, commit_mode="auto", connection=sync_client())


# --- By the clock -----------------------------------------------------------------------------


def poll(now: datetime | None = None) -> None:
    """Put into the queue whatever has waited too long: events, open orders, open refunds.

    Called by the clock every few seconds. Raises redis.RedisError while the queue is away; what was
    picked then is picked again at its next time.
    """
    now = now or timezone.now()
    for event_id, attempt in _pick_events(now):
        enqueue_event(event_id, attempt)
    for order_id in _pick_orders(now):
        enqueue_sync(order_id)
    for refund_id in _pick_refunds(now):
        enqueue_refund(refund_id)
    _collect_late_payments(now)


def _pick_events(now: datetime) -> list[tuple[int, int]]:
    waiting = Q(next_attempt_at=None, received_at__lte=now - EVENT_PATIENCE)
    with transaction.atomic():
        picked = list(
            ProviderEvent.objects.select_for_update(skip_locked=True)
            .filter(waiting | Q(next_attempt_at__lte=now), status__in=ProviderEvent.UNDONE)
            .order_by("pk")
            .values_list("pk", "attempts")[:POLL_MOST]
        )
        ProviderEvent.objects.filter(pk__in=[pk for pk, _ in picked]).update(
            next_attempt_at=now + POLL_PAUSE
        )
    return picked


def _pick_orders(now: datetime) -> list[UUID]:
    due = Q(pk=None)
    for age in ORDER_AGES:
        # Not asked since it came to that age.
        unasked = Q(asked_at=None) | Q(asked_at__lt=_plus("created_at", age))
        due |= unasked & Q(created_at__lte=now - age)
    with transaction.atomic():
        picked = list(
            Order.objects.select_for_update(skip_locked=True, no_key=True)
            .filter(due, status__in=Order.OPEN)
            .order_by("pk")
            .values_list("pk", flat=True)[:POLL_MOST]
        )
        Order.objects.filter(pk__in=picked).update(asked_at=now)
    return picked


def _plus(field: str, age: timedelta) -> Combinable:
    return ExpressionWrapper(F(field) + age, output_field=DateTimeField())


def _pick_refunds(now: datetime) -> list[UUID]:
    unknown = Q(provider_refund_id=None, updated_at__lte=now - REFUND_PAUSE)
    with transaction.atomic():
        picked = list(
            Refund.objects.select_for_update(skip_locked=True, no_key=True)
            .filter(unknown | Q(updated_at__lte=now - REFUND_PATIENCE), status__in=Refund.OPEN)
            .order_by("pk")
            .values_list("pk", flat=True)[:POLL_MOST]
        )
        Refund.objects.filter(pk__in=picked).update(updated_at=now)
    return picked


def _collect_late_payments(now: datetime) -> None:
    if not settings.PAYMENTS_SANDBOX:
        return
    from billing.providers import sandbox

    for payment_id, event_types in sandbox.collect_late(now):
        for event_type in event_types:
            enqueue_sandbox(payment_id, event_type)
