"""Webhooks from their endpoint to their effects: once each, in any order, with retries."""

from __future__ import annotations

import json
import time
import uuid
from datetime import timedelta
from functools import partial

import pytest
from django.core import mail
from django.db import connection
from django.test import Client
from django.utils import timezone
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from billing import queue
from billing.credits import MICRO
from billing.models import Account, LedgerEntry, Order, ProviderEvent, SandboxPayment
from billing.payments import checkout, poller, webhook_events
from billing.payments.providers import sandbox as bank
from tests.support import money, purchases
from tests.support.fakepay.postman import RAZORPAY_SECRET, sign_for_razorpay
from tests.support.threads import race

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("sandbox")]

FULL = 1100 * MICRO


def webhook(of: Order) -> tuple[bytes, dict[str, str]]:
    return bank.make_webhook(purchases.payment(of), "payment.succeeded")


def post_signed(body: bytes, *, age: int = 0) -> int:
    """Post a body that the bank signed `age` seconds ago; returns the status of the answer."""
    signature = bank.sign(body, int(time.time()) - age)
    return purchases.receive("sandbox", body, {"Sandbox-Signature": signature})


def post_event(**about: str) -> int:
    """Post an event with these ids, signed by the bank; returns the status of the answer."""
    event = {"id": "sbxev_1", "type": "payment.succeeded", "livemode": False, **about}
    return post_signed(json.dumps(event).encode())


def the_event() -> ProviderEvent:
    return ProviderEvent.objects.get()


# --- The endpoint ------------------------------------------------------------------------------


def test_event_is_stored_answered_and_then_processed(account, uncredited):
    body, headers = webhook(uncredited)
    assert purchases.post(body, headers).status_code == 200
    event = the_event()
    assert (event.status, bytes(event.body), event.headers) == ("received", body, headers)
    assert money.state(account) == (0, 0, 0)
    assert purchases.work() == 1
    event.refresh_from_db()
    assert (event.status, event.order, event.attempts) == ("processed", uncredited, 1)
    assert money.state(account) == (FULL, 0, 0)


@pytest.mark.parametrize(
    "signature",
    [
        "",
        "t=1,v1=00",
        "t=99999999999,v1=00",
        "t=1e3,v1=00",
        "v1=00",
        "t=\N{SUPERSCRIPT TWO},v1=00",
        "t=1,v1=\N{LATIN SMALL LETTER E WITH ACUTE}",
    ],
)
def test_bad_signature_is_refused_without_a_trace(uncredited, signature):
    body, _ = webhook(uncredited)
    headers = {"Sandbox-Signature": signature} if signature else {}
    assert purchases.post(body, headers).status_code == 400
    assert not ProviderEvent.objects.exists()
    assert not queue._queue().count


def test_changed_old_and_unreadable_bodies_are_refused(uncredited):
    body, headers = webhook(uncredited)
    assert purchases.post(body + b" ", headers).status_code == 400
    assert post_signed(body, age=301) == 400
    for garbage in (b"", b"\xff\xfe", b"[]", b"{}", b'"x"', b"null", b'{"id": 1}'):
        assert post_signed(garbage) == 400
    assert not ProviderEvent.objects.exists()


def test_too_long_body_is_refused_unread():
    assert post_signed(b"x" * 512_001) == 413
    assert purchases.post(b"x" * 2_000_000, {}).status_code == 413
    assert purchases.post(b"x" * 512_000, {}).status_code == 400


def test_endpoint_takes_posts_of_configured_providers_only(uncredited, settings):
    body, headers = webhook(uncredited)
    assert Client().get("/billing/webhooks/sandbox/").status_code == 405
    assert purchases.post(body, headers, provider="nobody").status_code == 404
    assert purchases.post(body, headers, provider="stripe").status_code == 404
    settings.PAYMENTS_SANDBOX = False
    assert purchases.post(body, headers).status_code == 404


def test_unreachable_database_is_answered_with_503(account, uncredited, own_postgres):
    """The provider then delivers the webhook again."""
    body, headers = webhook(uncredited)
    own_postgres.stop()
    real = connection.settings_dict["PORT"]
    try:
        reach(own_postgres.url.rpartition(":")[2].partition("/")[0])
        answer = purchases.post(body, headers)
    finally:
        reach(real)
    assert answer.status_code == 503
    assert answer["Retry-After"]
    assert not ProviderEvent.objects.exists()
    assert purchases.post(body, headers).status_code == 200
    purchases.work()
    assert money.state(account) == (FULL, 0, 0)


def reach(port: str) -> None:
    """Have this process's database connections lead to another port."""
    connection.close()
    connection.close_pool()  # type: ignore[attr-defined] # of the Postgres backend
    connection.settings_dict["PORT"] = port


def test_poller_finds_an_event_stored_without_queue(account, uncredited, queue_server):
    queue_server.stop()
    assert purchases.deliver(uncredited, "payment.succeeded") == 200
    queue_server.start()
    poller.poll(timezone.now() + timedelta(seconds=29))
    assert purchases.work() == 0
    poller.poll(timezone.now() + timedelta(seconds=31))
    assert purchases.work() == 1
    assert money.state(account) == (FULL, 0, 0)


# --- Once, however often -----------------------------------------------------------------------


def test_duplicate_of_a_processed_event_does_nothing(account, uncredited):
    body, headers = webhook(uncredited)
    purchases.post(body, headers)
    purchases.work()
    assert purchases.post(body, headers).status_code == 200
    assert purchases.work() == 0
    assert the_event().attempts == 1


@pytest.fixture
def lost_payment(uncredited, time_machine) -> SandboxPayment:
    """A payment that the bank lacks until it is saved again; its webhook failed. Time is frozen."""
    time_machine.move_to(timezone.now(), tick=False)
    body, headers = webhook(uncredited)
    payment = purchases.payment(uncredited)
    SandboxPayment.objects.all().delete()
    purchases.post(body, headers)
    purchases.work()
    return payment


def test_duplicate_of_a_failed_event_is_processed_directly(account, lost_payment):
    event = the_event()
    assert (event.status, event.attempts) == ("failed", 1)
    assert "ProviderError" in event.error
    assert event.next_attempt_at > timezone.now()
    lost_payment.save(force_insert=True)
    assert purchases.post(bytes(event.body), event.headers).status_code == 200
    purchases.work()
    event.refresh_from_db()
    assert (event.status, event.error) == ("processed", "")
    assert money.state(account) == (FULL, 0, 0)


def test_fifty_concurrent_copies_of_a_webhook_credit_once(account, uncredited):
    body, headers = webhook(uncredited)
    answers = purchases.at_once(50, lambda: purchases.post(body, headers).status_code)
    assert set(answers) == {200}
    event = the_event()
    purchases.at_once(50, lambda: webhook_events.process(event.pk))
    purchases.work()
    assert LedgerEntry.objects.count() == 2
    assert money.state(account) == (FULL, 0, 0)
    assert [message.subject for message in mail.outbox] == ["Parley: Receipt 000001"]
    assert money.problems() == []


def test_different_concurrent_webhooks_of_a_payment_credit_once(account, uncredited):
    for _ in range(10):
        assert purchases.deliver(uncredited, "checkout.completed") == 200
        assert purchases.deliver(uncredited, "payment.succeeded") == 200
    events = ProviderEvent.objects.values_list("pk", flat=True)
    race([partial(webhook_events.process, event) for event in events], threads=20)
    assert LedgerEntry.objects.count() == 2
    assert set(ProviderEvent.objects.values_list("status", flat=True)) == {"processed"}


def test_body_replayed_under_another_id_is_ignored(account, fakepay):
    made = purchases.begun(account, provider="razorpay")
    fakepay.razorpay.pay(made.provider_order_id)
    purchases.flush(fakepay)
    count = ProviderEvent.objects.count()
    for delivery in fakepay.postman.deliveries:
        headers = {
            "X-Razorpay-Signature": delivery.headers["X-Razorpay-Signature"],
            "X-Razorpay-Event-Id": uuid.uuid4().hex,
        }
        assert purchases.post(delivery.body, headers, provider="razorpay").status_code == 200
    assert purchases.work() == 0
    assert ProviderEvent.objects.count() == count
    assert money.state(account) == (FULL, 0, 0)


def test_id_taken_by_a_replay_blocks_no_event(account, fakepay):
    for _ in range(2):
        fakepay.razorpay.pay(purchases.begun(account, provider="razorpay").provider_order_id)
    fakepay.postman.flush(lambda provider, body, headers: 200)  # kept from us
    sent = fakepay.postman.deliveries
    for body in (sent[0].body, sent[-1].body):
        headers = {
            "X-Razorpay-Signature": sign_for_razorpay(body, RAZORPAY_SECRET),
            "X-Razorpay-Event-Id": "the-same-id",
        }
        assert purchases.post(body, headers, provider="razorpay").status_code == 200
    purchases.work()
    assert ProviderEvent.objects.count() == 2
    assert money.state(account) == (2 * FULL, 0, 0)


@pytest.mark.parametrize("about", [{}, {"order_id": "no-uuid"}, {"order_id": str(uuid.uuid4())}])
def test_event_about_an_unknown_order_is_ignored(about):
    assert post_event(**about) == 200
    purchases.work()
    assert (the_event().status, the_event().order) == ("ignored", None)


def test_event_about_another_providers_order_is_ignored(account, fakepay):
    post_event(order_id=str(purchases.begun(account, provider="stripe").pk))
    purchases.work()
    assert the_event().status == "ignored"


# --- Failing, and trying again -----------------------------------------------------------------


def test_failing_event_backs_off_and_ends_in_review(account, lost_payment):
    now = timezone.now()
    pauses = []
    while the_event().status == "failed":
        pauses.append((the_event().next_attempt_at - now).total_seconds())
        ProviderEvent.objects.update(next_attempt_at=now)
        poller.poll(now)
        assert purchases.work() == 1
    event = the_event()
    assert (event.status, event.attempts, event.next_attempt_at) == ("review", 12, None)
    assert pauses == [10, 20, 40, 80, 160, 320, 640, 1280, 2560, 3600, 3600]
    assert len(purchases.alerts()) == len(mail.outbox) == 1
    poller.poll(now + timedelta(days=1))
    assert the_event().next_attempt_at is None
    # Staff press the button as soon as the cause is removed.
    lost_payment.save(force_insert=True)
    queue._queue().empty()
    webhook_events.retry(event.pk)
    purchases.work()
    assert the_event().status == "processed"
    assert money.state(account) == (FULL, 0, 0)


def test_lost_job_is_followed_by_another(account, uncredited):
    purchases.deliver(uncredited, "payment.succeeded")
    queue._queue().empty()
    event = the_event()
    assert webhook_events.claim(event.pk, 0)
    assert not webhook_events.claim(event.pk, 0)
    poller.poll(timezone.now() + timedelta(seconds=90))
    assert purchases.work() == 0
    poller.poll(timezone.now() + timedelta(minutes=4))
    assert purchases.work() >= 1
    assert the_event().status == "processed"
    assert money.state(account) == (FULL, 0, 0)


def test_poller_enqueues_an_event_once(uncredited):
    purchases.deliver(uncredited, "payment.succeeded")
    queue._queue().empty()
    now = timezone.now() + timedelta(minutes=1)
    for seconds in range(0, 45, 15):
        poller.poll(now + timedelta(seconds=seconds))
    assert queue._queue().count == 1


# --- Any order, any number of times ------------------------------------------------------------

STEPS = ("pay", "refund", "refund", "dispute", "win")
REPORTED = {
    "pay": ("checkout.completed", "payment.succeeded"),
    "refund": ("refund.created",),
    "dispute": ("dispute.funds_withdrawn",),
    "win": ("dispute.closed",),
}


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data(), spent=st.sampled_from([0, 500 * MICRO, FULL]))
def test_result_depends_only_on_the_providers_state(sandbox, data, spent):
    """Webhooks of {paid, succeeded, refund x2, dispute, won}: early, late, doubled, in any order."""
    account = money.open_account()
    account_before = Account.objects.get(pk=account.pk).balance
    made = purchases.begun(account)
    payment_id = purchases.bank_id(made)
    waiting: list[str] = []
    dispute_id = ""
    is_spent = False
    for step in STEPS:
        if step == "pay":
            bank.pay(payment_id)
        elif step == "refund":
            bank.refund_there(payment_id, 100)
        elif step == "dispute":
            dispute_id = bank.dispute(payment_id, 300)
        else:
            bank.decide(payment_id, dispute_id, is_won=True)
        waiting += REPORTED[step]
        # Some of the reported events arrive now, perhaps twice, and some later.
        while waiting and data.draw(st.booleans()):
            event_type = waiting[data.draw(st.integers(0, len(waiting) - 1))]
            if data.draw(st.booleans()):
                waiting.remove(event_type)
            purchases.deliver(made, event_type)
            purchases.work()
        made.refresh_from_db()
        if made.is_paid and spent and not is_spent:
            is_spent = True
            spend_available(account, spent)
    for event_type in data.draw(st.permutations(waiting)):
        purchases.deliver(made, event_type)
    purchases.work()
    # All webhooks may have come before the last steps: then the clock syncs the order.
    checkout.sync_order(made.pk)
    made.refresh_from_db()
    assert (made.status, made.amount_refunded_minor) == ("partially_refunded", 200)
    balance, held, debt = money.state(account)
    assert held == 0
    used = -sum(
        LedgerEntry.objects.filter(account=account, kind="usage").values_list("amount", flat=True)
    )
    # Two fifths of the credits went back with the money, in whatever order the webhooks came.
    assert balance - debt == account_before + FULL - FULL * 200 // 500 - used
    assert Account.objects.get(pk=account.pk).status == "active"
    assert money.problems(account) == []


def spend_available(account: Account, amount: int) -> None:
    account.refresh_from_db()
    amount = min(amount, account.available)
    if amount and not account.debt and account.status == "active":
        money.spend(account, amount)
