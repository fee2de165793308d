"""Billing's scheduled tasks, and the jobs that they enqueue."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import django_rq
import pytest
from django.core import mail
from django.utils import timezone
from rq.job import Job, JobStatus

from billing import jobs, queue, schedule
from billing.credits import MICRO
from billing.models import Account, DailyUsage, Hold, LedgerCheck, Order, Plan, ProviderEvent
from billing.payments import poller
from billing.signals import balance_changed
from tests.support import money
from tests.support.bad_rows import refused

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("valkey_url")]


def waiting() -> list[str]:
    """The ids of the queued jobs."""
    return django_rq.get_queue("billing").job_ids


def test_each_task_is_enqueued_once():
    for task in schedule.tasks() * 3:
        task.run(timezone.now())
    assert sorted(waiting()) == [
        "task-end-memberships",
        "task-expire-credits",
        "task-expire-holds",
        "task-follow-plans",
        "task-monthly-credits",
        "task-nightly-check",
        "task-roll-up-usage",
        "task-tell-of-expiry",
        "task-tell-of-low-balances",
    ]


def test_every_task_has_a_working_job(account):
    for name in schedule.JOBS:
        jobs.run_task(name)
    assert [check.problems for check in LedgerCheck.objects.all()] == [[], []]
    with pytest.raises(KeyError):
        jobs.run_task("something else")


def test_jobs_match_their_names(account):
    now = timezone.now()
    Plan.objects.create(slug="all", name="All", monthly_credits=9, is_default=True)
    jobs.run_task("monthly credits")
    held = money.hold(account, 5, expires_at=now - timedelta(seconds=1))
    jobs.run_task("expire holds")
    held.refresh_from_db()
    assert (held.status, held.resolved_by) == (Hold.Status.RELEASED, Hold.Resolver.EXPIRY)
    assert money.state(account) == (9, 0, 0)
    jobs.run_task("roll up usage")
    assert not DailyUsage.objects.exists()


def enqueue_and_pop() -> Job:
    """Enqueue a task and take its job off the queue, as a worker does."""
    queue.enqueue_task("expire holds")
    stored = django_rq.get_queue("billing")
    stored.connection.delete(stored.key)
    return Job.fetch(
        "task-expire-holds", connection=stored.connection, serializer=stored.serializer
    )


@pytest.mark.parametrize("status", [JobStatus.FAILED, JobStatus.FINISHED, JobStatus.QUEUED])
def test_lost_or_ended_task_is_enqueued_again(status):
    enqueue_and_pop().set_status(status)
    queue.enqueue_task("expire holds")
    assert waiting() == ["task-expire-holds"]


@pytest.mark.parametrize(("minutes", "is_enqueued"), [(5, False), (30, True)])
def test_running_task_is_enqueued_after_its_timeout(minutes, is_enqueued):
    job = enqueue_and_pop()
    job.started_at = datetime.now(UTC) - timedelta(minutes=minutes)
    job.save()
    job.set_status(JobStatus.STARTED)
    queue.enqueue_task("expire holds")
    assert bool(waiting()) == is_enqueued


@pytest.mark.parametrize(
    ("checked", "now", "is_due"),
    [
        ("", "2099-05-10 12:00", True),
        ("2099-05-10 03:01", "2099-05-10 12:00", False),
        ("2099-05-10 03:01", "2099-05-11 02:59", False),
        ("2099-05-10 03:01", "2099-05-11 03:00", True),
        # A check by staff in the evening does not replace the nightly one.
        ("2099-05-10 22:00", "2099-05-11 03:00", True),
        ("2099-05-08 03:01", "2099-05-11 01:00", True),
    ],
)
def test_ledger_is_checked_once_a_night(checked, now, is_due):
    moment = datetime.fromisoformat(now).replace(tzinfo=UTC)
    if checked:
        started = datetime.fromisoformat(checked).replace(tzinfo=UTC)
        LedgerCheck.objects.create(started_at=started, entries=0)
        # A partial check does not replace the full one.
        LedgerCheck.objects.create(started_at=moment, entries=0, is_full=False)
    [task] = [task for task in schedule.tasks() if task.name == "nightly check"]
    task.run(moment)
    assert ("task-nightly-check" in waiting()) == is_due


def test_inconsistent_account_is_frozen_and_staff_alerted(account, settings, caplog):
    settings.BILLING_ALERT_EMAIL = ["billing@example.org"]
    money.grant(account, 100)
    other = money.open_account(50)
    money.tamper("UPDATE billing_account SET balance = 150 WHERE balance = 100")
    jobs.run_task("check ledger")
    assert LedgerCheck.objects.get().problems
    account.refresh_from_db()
    other.refresh_from_db()
    assert (account.status, other.status) == (Account.Status.FROZEN, Account.Status.ACTIVE)
    [alert] = mail.outbox
    assert alert.to == ["billing@example.org"]
    assert f"account {account.pk}: The balance is 0.00015, but its lots hold 0.0001" in alert.body


def test_recent_payments_are_compared_with_providers_nightly(account):
    old, new = money.order(account), money.order(account)
    money.order(account)  # unknown to any provider
    for order, name in ((old, "old"), (new, "new")):
        order.provider_order_id = name
        order.save()
    Order.objects.filter(pk=old.pk).update(created_at=timezone.now() - timedelta(days=9))
    jobs.run_task("nightly check")
    stored = django_rq.get_queue("billing")
    assert [job.kwargs for job in stored.jobs] == [{"order_id": str(new.pk)}]


def test_low_balance_is_announced_once(account):
    money.grant(account, 100 * MICRO)
    for _ in range(3):
        money.spend(account, 30 * MICRO)
    for _ in range(2):
        jobs.run_task("tell of low balances")
    assert [one.to for one in mail.outbox] == [[account.user.email]]


def test_low_balance_is_not_announced_without_billing(account, settings):
    settings.BILLING = False
    money.grant(account, 100 * MICRO)
    money.adjust(account, -99 * MICRO)
    jobs.run_task("tell of low balances")
    assert mail.outbox == []


def test_bad_balance_does_not_stop_other_mails(caplog):
    accounts = [money.open_account(1) for _ in range(3)]
    for account in accounts:
        money.spend(account, 1)
    with refused("billing_account", f"NEW.id = {accounts[0].pk}"):
        jobs.run_task("tell of low balances")
    assert len(mail.outbox) == 2
    assert f"the low balance of account {accounts[0].pk} failed" in caplog.text


def test_failing_receiver_does_not_skip_others(account, caplog):
    """Of a change of a balance: a top-up is considered whatever another receiver does."""
    seen = []

    def fail(**kwargs: object) -> None:
        raise ValueError("a receiver's bug")

    def note(*, account_id: int, **kwargs: object) -> None:
        seen.append(account_id)

    for receiver in (fail, note):
        balance_changed.connect(receiver)
    try:
        money.grant(account, 5)
    finally:
        for receiver in (fail, note):
            balance_changed.disconnect(receiver)
    assert seen == [account.pk]
    assert "a receiver's bug" in caplog.text


def test_bad_event_does_not_stop_polling_of_orders(account, caplog):
    now = timezone.now()
    order = money.order(account, status=Order.Status.PENDING)
    Order.objects.filter(pk=order.pk).update(created_at=now - timedelta(minutes=5))
    event = ProviderEvent.objects.create(
        provider="stripe", event_id="e1", event_type="x", body=b"{}"
    )
    ProviderEvent.objects.update(received_at=now - timedelta(minutes=5))
    with refused("billing_providerevent", f"NEW.id = {event.pk}"):
        poller.poll(now)
    assert "poll events failed" in caplog.text
    assert len(waiting()) == 1
