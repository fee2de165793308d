from __future__ import annotations

import json
import time
import uuid
from datetime import timedelta

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
from chatproject.lib.redis.clients import sync_client
from tests.support import money, purchases
from tests.support.fakepay.postman import RAZORPAY_SECRET, sign_for_razorpay

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("sandbox")]

FULL = 1100 * MICRO


@pytest.fixture
def paid_there(account) -> Order:
    """An order whose buyer has paid at the bank, of which we know nothing yet."""
    made = purchases.begun(account)
    bank.pay(purchases.there(made))
    return made


def webhook(of: Order, event_type: str = "payment.succeeded") -> tuple[bytes, dict[str, str]]:
    return bank.make_webhook(purchases.payment(of), event_type)


def the_event() -> ProviderEvent:
    return ProviderEvent.objects.get()


# --- The door ----------------------------------------------------------------------------------


def test_an_event_is_stored_answered_and_then_processed(account, paid_there):
    body, headers = webhook(paid_there)
    assert purchases.post(body, headers).status_code == 200
    event = the_event()
    assert (event.status, bytes(event.body), event.headers) == ("received", body, headers)
    assert money.state(account) == (0, 0, 0)
    assert purchases.work() == 2  # the event, and then the receipt
    event.refresh_from_db()
    assert (event.status, event.order, event.attempts) == ("processed", paid_there, 1)
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
def test_a_bad_signature_is_refused_and_leaves_no_trace(paid_there, signature):
    body, _ = webhook(paid_there)
    headers = {"Sandbox-Signature": signature} if signature else {}
    assert purchases.post(body, headers).status_code == 400
    assert not ProviderEvent.objects.exists()
    assert not queue._queue().count


def test_a_changed_body_an_old_one_and_garbage_are_refused(paid_there):
    body, headers = webhook(paid_there)
    assert purchases.post(body + b" ", headers).status_code == 400
    old = {"Sandbox-Signature": bank.sign(body, int(time.time()) - 301)}
    assert purchases.post(body, old).status_code == 400
    for garbage in (b"", b"\xff\xfe", b"[]", b"{}", b'"x"', b"null", b'{"id": 1}'):
        signed = {"Sandbox-Signature": bank.sign(garbage, int(time.time()))}
        assert purchases.post(garbage, signed).status_code == 400
    assert not ProviderEvent.objects.exists()


def test_a_body_that_is_too_long_is_refused_before_it_is_looked_at():
    body = b"x" * 512_001
    headers = {"Sandbox-Signature": bank.sign(body, int(time.time()))}
    assert purchases.post(body, headers).status_code == 413
    assert purchases.post(b"x" * 2_000_000, {}).status_code == 413
    assert purchases.post(b"x" * 512_000, {}).status_code == 400


def test_only_posts_and_only_to_providers_that_are_configured(paid_there, settings):
    body, headers = webhook(paid_there)
    assert Client().get("/billing/webhooks/sandbox/").status_code == 405
    assert purchases.post(body, headers, provider="nobody").status_code == 404
    assert purchases.post(body, headers, provider="stripe").status_code == 404
    settings.PAYMENTS_SANDBOX = False
    assert purchases.post(body, headers).status_code == 404


def test_our_failure_is_answered_as_such_so_that_the_provider_tries_again(
    account, paid_there, own_postgres
):
    body, headers = webhook(paid_there)
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
    """Have this process's database at another port."""
    connection.close()
    connection.close_pool()  # type: ignore[attr-defined] # of the Postgres backend
    connection.settings_dict["PORT"] = port


def test_without_the_queue_the_event_is_taken_and_the_poller_finds_it(
    account, paid_there, settings, own_valkey
):
    settings.REDIS_URL = own_valkey.url
    forget_clients()
    try:
        own_valkey.stop()
        assert purchases.deliver(paid_there, "payment.succeeded") == 200
        own_valkey.start()
        settings.REDIS_URL = own_valkey.url
        forget_clients()
        poller.poll(timezone.now() + timedelta(seconds=29))
        assert purchases.work() == 0
        poller.poll(timezone.now() + timedelta(seconds=31))
        assert purchases.work() == 2
    finally:
        forget_clients()
    assert money.state(account) == (FULL, 0, 0)


def forget_clients() -> None:
    sync_client.cache_clear()
    queue._queue.cache_clear()


# --- Once, however often -----------------------------------------------------------------------


def test_a_duplicate_of_what_was_processed_does_nothing(account, paid_there):
    body, headers = webhook(paid_there)
    purchases.post(body, headers)
    purchases.work()
    assert purchases.post(body, headers).status_code == 200
    assert purchases.work() == 0
    assert the_event().attempts == 1


def test_a_duplicate_of_what_failed_is_processed_again_at_once(account, paid_there):
    body, headers = webhook(paid_there)
    there = purchases.payment(paid_there)
    SandboxPayment.objects.all().delete()  # the bank does not answer for it
    purchases.post(body, headers)
    purchases.work()
    event = the_event()
    assert (event.status, event.attempts) == ("failed", 1)
    assert "ProviderError" in event.error
    assert event.next_attempt_at > timezone.now()
    there.save(force_insert=True)
    assert purchases.post(body, headers).status_code == 200
    purchases.work()
    event.refresh_from_db()
    assert (event.status, event.error) == ("processed", "")
    assert money.state(account) == (FULL, 0, 0)


def test_the_same_webhook_fifty_times_at_once_credits_once(account, paid_there):
    body, headers = webhook(paid_there)
    answers = purchases.at_once(50, lambda: purchases.post(body, headers).status_code)
    assert set(answers) == {200}
    event = the_event()
    purchases.at_once(50, lambda: webhook_events.process(event.pk))
    purchases.work()
    assert LedgerEntry.objects.count() == 2
    assert money.state(account) == (FULL, 0, 0)
    assert [message.subject for message in mail.outbox] == ["Parley: Receipt 000001"]
    assert money.problems() == []


def test_different_webhooks_of_one_payment_processed_at_once_credit_once(account, paid_there):
    for _ in range(10):
        assert purchases.deliver(paid_there, "checkout.completed") == 200
        assert purchases.deliver(paid_there, "payment.succeeded") == 200
    waiting = iter(ProviderEvent.objects.values_list("pk", flat=True))
    ids = [next(waiting) for _ in range(20)]
    purchases.at_once(20, lambda: webhook_events.process(ids.pop()))
    assert LedgerEntry.objects.count() == 2
    assert set(ProviderEvent.objects.values_list("status", flat=True)) == {"processed"}


def test_a_body_replayed_under_another_id_is_the_same_event(account, fakepay):
    made = purchases.begun(account, provider="razorpay", currency="INR")
    fakepay.razorpay.pay(made.provider_order_id)
    fakepay.postman.flush(purchases.receive)
    purchases.work()
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


def test_an_id_taken_by_a_replay_does_not_keep_the_real_event_out(account, fakepay):
    first = purchases.begun(account, provider="razorpay", currency="INR")
    second = purchases.begun(account, provider="razorpay", currency="INR")
    for made in (first, second):
        fakepay.razorpay.pay(made.provider_order_id)
    fakepay.postman.flush(lambda provider, body, headers: 200)  # on the way
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
def test_an_event_about_nothing_that_we_know_is_kept_and_ignored(about):
    event = {"id": "sbxev_1", "type": "payment.succeeded", "livemode": False, **about}
    body = json.dumps(event).encode()
    headers = {"Sandbox-Signature": bank.sign(body, int(time.time()))}
    assert purchases.post(body, headers).status_code == 200
    purchases.work()
    assert (the_event().status, the_event().order) == ("ignored", None)


def test_an_event_cannot_name_another_providers_order(account, fakepay):
    made = purchases.begun(account, provider="stripe")
    event = {"id": "1", "type": "payment.succeeded", "livemode": False, "order_id": str(made.pk)}
    body = json.dumps(event).encode()
    purchases.post(body, {"Sandbox-Signature": bank.sign(body, int(time.time()))})
    purchases.work()
    assert the_event().status == "ignored"


# --- Failing, and trying again -----------------------------------------------------------------


def test_what_fails_is_tried_again_ever_more_slowly_and_then_waits_for_staff(account, paid_there):
    body, headers = webhook(paid_there)
    there = purchases.payment(paid_there)
    SandboxPayment.objects.all().delete()
    purchases.post(body, headers)
    purchases.work()
    now = timezone.now()
    pauses = []
    while the_event().status == "failed":
        before = the_event()
        pauses.append(round((before.next_attempt_at - timezone.now()).total_seconds()))
        ProviderEvent.objects.update(next_attempt_at=now)
        poller.poll(now)
        assert purchases.work() == 1
    event = the_event()
    assert (event.status, event.attempts, event.next_attempt_at) == ("review", 12, None)
    assert pauses == pytest.approx([10, 20, 40, 80, 160, 320, 640, 1280, 2560, 3600, 3600], abs=3)
    [message] = mail.outbox
    assert message.to == ["staff@example.org"]
    poller.poll(now + timedelta(days=1))
    assert event.attempts == 12
    # Staff press the button once the reason is gone.
    there.save(force_insert=True)
    queue._queue().empty()
    webhook_events.retry(event.pk)
    purchases.work()
    assert the_event().status == "processed"
    assert money.state(account) == (FULL, 0, 0)


def test_a_job_that_died_is_followed_by_another(account, paid_there):
    purchases.deliver(paid_there, "payment.succeeded")
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


def test_the_poller_puts_an_event_into_the_queue_once(paid_there):
    purchases.deliver(paid_there, "payment.succeeded")
    queue._queue().empty()
    now = timezone.now() + timedelta(minutes=1)
    for seconds in range(0, 45, 15):
        poller.poll(now + timedelta(seconds=seconds))
    assert queue._queue().count == 1


# --- Any order, any number of times ------------------------------------------------------------

STEPS = ("pay", "refund", "refund", "dispute", "win")
TOLD = {
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
def test_the_end_depends_only_on_how_things_stand_at_the_provider(sandbox, data, spent):
    """Webhooks of {paid, succeeded, refund x2, dispute, won}: early, late, doubled, in any order."""
    account = money.open_account()
    account_before = Account.objects.get(pk=account.pk).balance
    made = purchases.begun(account)
    payment_id = purchases.there(made)
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
        waiting += TOLD[step]
        # Some of what was told arrives now, perhaps twice, and some of it later.
        while waiting and data.draw(st.booleans()):
            event_type = waiting[data.draw(st.integers(0, len(waiting) - 1))]
            if data.draw(st.booleans()):
                waiting.remove(event_type)
            purchases.deliver(made, event_type)
            purchases.work()
        made.refresh_from_db()
        if made.is_paid and spent and not is_spent:
            is_spent = True
            spend(account, spent)
    for event_type in data.draw(st.permutations(waiting)):
        purchases.deliver(made, event_type)
    purchases.work()
    # All hints may have come before the last steps: then the clock asks.
    checkout.sync_order(made.pk)
    made.refresh_from_db()
    assert (made.status, made.amount_refunded_minor) == ("partially_refunded", 200)
    balance, held, debt = money.state(account)
    assert held == 0
    used = -sum(
        LedgerEntry.objects.filter(account=account, kind="usage").values_list("amount", flat=True)
    )
    # Two fifths of the credits went back with the money, whatever happened in between.
    assert balance - debt == account_before + FULL - FULL * 200 // 500 - used
    assert Account.objects.get(pk=account.pk).status == "active"
    assert money.problems(account) == []


def spend(account: Account, amount: int) -> None:
    account.refresh_from_db()
    least = min(amount, account.available)
    if least and not account.debt and account.status == "active":
        money.settle(money.hold(account, least), least)
