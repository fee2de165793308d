"""Outgoing webhooks, from an event to its receiver: outbox, signatures, repetitions, guards, limits."""

from __future__ import annotations

import asyncio
import json
import socket
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from ipaddress import ip_network
from typing import Any

import pytest
import time_machine
from django.core import mail
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from standardwebhooks import Webhook as Verifier
from standardwebhooks import WebhookVerificationError

from accounts.models import User
from billing.models import Account
from billing.reports import low_balance_mail
from chat.models import ApiCall, Conversation, Message, Run, Webhook, WebhookDelivery
from chat.runs import finish, queue
from chat.webhooks import addresses, attempts, client, dispatch, editing, retries, signing
from chat.webhooks.jobs import deliver
from chatproject.lib import db
from tests.support import money
from tests.support.conversations import send
from tests.support.locks import locked, wait_for_blocked_session
from tests.support.runs import fresh, mark_running
from tests.support.threads import race
from tests.support.webhook_receiver import Receiver, webhook_receiver

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("valkey_url")]

LOOPBACK = [ip_network("127.0.0.0/8")]
DAY = timedelta(days=1)


@pytest.fixture
def receiver(settings):
    settings.WEBHOOK_NETWORKS = LOOPBACK
    with webhook_receiver() as receiver:
        yield receiver


@pytest.fixture
def webhook(owner, receiver) -> Webhook:
    return add(owner, receiver)


def add(user: User, receiver: Receiver, **terms: Any) -> Webhook:
    values = {"name": "Test", "url": receiver.url, "events": Webhook.Event.values, **terms}
    return editing.create(user, editing.Terms(**values))


def end_run(owner: User, conversation: Conversation, **outcome: Any) -> Run:
    """End a reply as its worker does."""
    run = send(owner, conversation, "A question")
    mark_running(run)
    values = {"status": Run.Status.DONE, "text": "A secret reply", **outcome}
    made = finish.Outcome(**values)
    finish.end(run_id=run.pk, attempt=1, status=Run.Status.RUNNING, seq=9, outcome=made)
    return fresh(run.pk)


def jobs() -> list[dict[str, Any]]:
    low = queue.rq_queue("low").get_jobs()
    return [job.kwargs for job in low if job.func_name == "chat.webhooks.jobs.deliver"]


def work(now: datetime | None = None) -> int:
    """Take a turn of the clock, then all jobs of the workers; return how many."""
    dispatch.hand_out(now or timezone.now())
    found = jobs()
    queue.rq_queue("low").empty()

    async def run_all() -> None:
        await asyncio.gather(*(deliver(**job) for job in found))

    asyncio.run(run_all())
    return len(found)


def read(delivery: WebhookDelivery | None = None) -> WebhookDelivery:
    rows = WebhookDelivery.objects
    return rows.get(pk=delivery.pk) if delivery else rows.get()


def body_of(receiver: Receiver, webhook: Webhook, index: int = -1) -> Any:
    """Return the body of a request, checked by the library of Standard Webhooks."""
    headers, body = receiver.requests[index]
    return Verifier(editing.secret_of(webhook)).verify(body, headers)


def test_signature_equals_that_of_the_specification():
    headers = signing.headers(
        ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"],
        message_id="msg_p5jXN8AQM9LWM0D4loKWxJek",
        timestamp=1614265330,
        body=b'{"test": 2432232314}',
    )
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_end_of_a_run_reaches_its_webhooks(owner, stranger, conversation, receiver):
    end_run(owner, conversation)
    assert not WebhookDelivery.objects.exists()  # before there was a webhook
    webhook = add(owner, receiver)
    texts = add(owner, receiver, includes_text=True)
    add(owner, receiver, active=False)
    add(owner, receiver, events=["credits.low"])
    add(stranger, receiver)
    usage = finish.counted_usage(10, "A secret reply", "")
    run = end_run(owner, conversation, usage=usage, finish_reason="stop")
    assert work() == 2
    assert work() == 0
    bodies = {
        one.pk: body_of(receiver, one, receiver.ids.index(one.deliveries.get().message_id))
        for one in (webhook, texts)
    }
    without = bodies[webhook.pk]
    assert without["type"] == "run.done"
    assert datetime.fromisoformat(without["timestamp"]) == run.ended_at
    data = without["data"]
    assert data["charged"] is not None
    assert data["usage"]["completion_tokens"] == usage.completion_tokens
    assert (data["id"], data["conversation"]) == (str(run.pk), str(conversation.pk))
    assert (data["status"], data["model"], data["error"]) == ("done", "Stub", None)
    assert b"secret reply" not in json.dumps(without).encode()
    assert bodies[texts.pk]["data"] == {**data, "text": "A secret reply"}
    log = WebhookDelivery.objects.all()
    assert {(one.status, one.attempts, one.response_status) for one in log} == {
        ("delivered", 1, 204)
    }
    assert not any("secret reply" in one.body for one in log)
    headers, _body = receiver.requests[0]
    assert headers["content-type"] == "application/json"
    assert headers["user-agent"] == "Parley-Webhooks"


@pytest.mark.parametrize(
    ("outcome", "status", "error"),
    [
        ({"status": Run.Status.FAILED, "code": "provider_error", "message": "No.", "text": ""},
         "failed", {"code": "provider_error", "message": "No."}),
        ({"status": Run.Status.STOPPED}, "stopped", None),
    ],
)  # fmt: skip
def test_other_ends_of_a_run_are_events(owner, conversation, webhook, outcome, status, error):
    end_run(owner, conversation, **outcome)
    data = json.loads(read().body)["data"]
    assert (data["status"], data["error"]) == (status, error)


def test_event_needs_no_further_statement(owner, conversation, receiver):
    counts = []
    for _ in range(3):
        run = send(owner, conversation, "A question")
        mark_running(run)
        made = finish.Outcome(status=Run.Status.DONE, text="A reply")
        with CaptureQueriesContext(connection) as statements:
            finish.end(run_id=run.pk, attempt=1, status=Run.Status.RUNNING, seq=9, outcome=made)
        counts.append(len(statements))
        if len(counts) == 2:
            add(owner, receiver)
    assert WebhookDelivery.objects.count() == 1
    assert counts[1] == counts[2]


def test_failed_delivery_is_repeated_with_its_id(owner, conversation, webhook, receiver):
    end_run(owner, conversation)
    receiver.answers = [500, "hang-up", "garbage", "redirect", 404, 429]
    now = timezone.now()
    for number, pause in enumerate(retries.PAUSES[:6], start=1):
        assert work(now) == 1
        row = read()
        assert (row.status, row.attempts) == ("waiting", number)
        wait = (row.due_at - timezone.now()).total_seconds()
        assert pause - 1 <= wait <= pause * (1 + retries.JITTER)
        assert work(row.due_at - timedelta(seconds=1)) == 0
        now = row.due_at
    assert read().response_body == "answer \N{REPLACEMENT CHARACTER} of the receiver"
    webhook.refresh_from_db()
    assert webhook.failing_since is not None
    assert work(now) == 1
    row = read()
    assert (row.status, row.attempts, row.response_status, row.error) == ("delivered", 7, 204, "")
    assert set(receiver.ids) == {row.message_id}
    assert len(receiver.ids) == 7
    webhook.refresh_from_db()
    assert (webhook.failing_since, webhook.active) == (None, True)


def test_receiver_may_ask_for_a_longer_pause():
    assert timedelta(seconds=900) <= retries.pause(1, "900") <= timedelta(seconds=990)
    for odd in ("", "-5", "soon", "1e9", "٣٣٣", "9" * 30):
        assert retries.pause(1, odd) <= timedelta(seconds=5.5)
    assert retries.pause(1, "999999999") <= 1.1 * timedelta(seconds=retries.PAUSES[-1])


def test_webhook_that_fails_for_days_is_switched_off(owner, conversation, webhook, receiver):
    end_run(owner, conversation)
    receiver.answers = [500] * 20
    now = timezone.now()
    with time_machine.travel(now, tick=True) as clock:
        for _ in range(retries.MAX_ATTEMPTS):
            assert work() == 1
            if (row := read()).status == "waiting":
                clock.move_to(row.due_at)
    webhook.refresh_from_db()
    assert (webhook.active, webhook.disabled) == (False, "failing")
    assert (read().status, len(receiver.requests)) == ("failed", retries.MAX_ATTEMPTS)
    [message] = mail.outbox
    assert message.to == [owner.email]
    assert "Test" in message.subject
    end_run(owner, conversation)
    assert WebhookDelivery.objects.count() == 1  # no event is stored for one that is off


def test_gone_switches_off_at_once(owner, conversation, webhook, receiver):
    end_run(owner, conversation)
    end_run(owner, conversation)
    receiver.answers = [410, 410]
    work()
    webhook.refresh_from_db()
    assert (webhook.active, webhook.disabled) == (False, "gone")
    assert {one.status for one in WebhookDelivery.objects.all()} == {"failed"}
    assert len(mail.outbox) == 1


def test_killed_worker_leaves_the_message_to_another(owner, conversation, webhook, receiver):
    """Killed after the receiver had the message, and before the result was stored."""
    end_run(owner, conversation)
    now = timezone.now()
    dispatch.hand_out(now)
    [job] = jobs()
    queue.rq_queue("low").empty()

    delivery = read()

    async def until_the_record() -> None:
        attempt = await db.run(attempts._claim, delivery.pk, job["attempts"])
        assert attempt is not None
        assert (await client.post(attempt.url, attempt.body, attempt.headers)).is_accepted

    asyncio.run(until_the_record())
    assert read().status == "sending"
    assert work(now + attempts.ATTEMPT_TIME / 2) == 0
    assert work(timezone.now() + attempts.ATTEMPT_TIME) == 1
    assert (read().status, read().attempts) == ("delivered", 2)
    assert receiver.ids == [read().message_id] * 2


def test_lost_job_and_flushed_redis_lose_no_message(
    owner, conversation, webhook, receiver, valkey_client
):
    end_run(owner, conversation)
    now = timezone.now()
    dispatch.hand_out(now)
    valkey_client.flushall()
    assert work(now + dispatch.PATIENCE / 2) == 0
    assert work(now + dispatch.PATIENCE) == 1
    assert read().status == "delivered"
    assert len(receiver.requests) == 1


def test_two_workers_make_one_attempt(owner, conversation, webhook, receiver):
    end_run(owner, conversation)
    dispatch.hand_out(timezone.now())
    [job] = jobs()

    async def both() -> None:
        await asyncio.gather(*(deliver(**job) for _ in range(5)))

    asyncio.run(both())
    assert len(receiver.requests) == 1
    asyncio.run(deliver(**job))  # a job that comes too late
    assert len(receiver.requests) == 1
    # The result of an attempt that was presumed lost changes nothing.
    late = attempts.Attempt(read().pk, webhook.pk, 1, receiver.url, b"", {})
    WebhookDelivery.objects.update(status="sending", attempts=2)
    attempts.record(late, client.Answer(500))
    assert (read().status, read().attempts) == ("sending", 2)


def test_hostile_answers_are_bounded(owner, conversation, webhook, receiver, monkeypatch):
    monkeypatch.setattr(client, "SECONDS", 0.5)
    for answer in ("huge", "silent", "headers"):
        end_run(owner, conversation)
        receiver.answers = [answer]
        work()
        row = WebhookDelivery.objects.first()
        assert row is not None
        if answer == "huge":
            assert (row.status, row.response_body) == ("delivered", "x" * client.ANSWER_BYTES)
            assert receiver.written < 10_000_000
        else:
            assert (row.status, row.response_status) == ("waiting", None)
            assert row.error.startswith("The server")
    assert "followed" not in receiver.ids


def test_deleted_webhook_lets_its_runs_end(owner, conversation, webhook):
    """The end of a run waits for the deletion, or the deletion for the end; neither fails."""
    run = send(owner, conversation, "A question")
    mark_running(run)
    made = finish.Outcome(status=Run.Status.DONE, text="A reply")

    def end() -> object:
        return finish.end(run_id=run.pk, attempt=1, status=Run.Status.RUNNING, seq=9, outcome=made)

    with ThreadPoolExecutor() as pool, locked(webhook):
        ending = pool.submit(race, [end])
        wait_for_blocked_session()
        deleting = pool.submit(race, [lambda: editing.delete(webhook)])
    [ended] = ending.result()
    assert ended.run == run.pk
    assert deleting.result() == [None]
    assert fresh(run.pk).status == "done"
    assert not WebhookDelivery.objects.exists()
    assert not Webhook.objects.exists()


def test_slow_receiver_holds_up_no_other(owner, stranger, assistant, conversation, receiver):
    add(owner, receiver)
    with webhook_receiver() as other:
        webhook = add(stranger, other, url=other.url.replace("127.0.0.1", "127.0.0.2"))
        for _ in range(3 * dispatch.PER_USER):
            editing.send_test(Webhook.objects.get(owner=owner))
        now = timezone.now()
        assert dispatch.hand_out(now) == dispatch.PER_USER
        editing.send_test(webhook)
        assert dispatch.hand_out(now) == 0
        assert dispatch.hand_out(timezone.now()) == 1
        assert dispatch.hand_out(timezone.now()) == 0  # of the first, until some have ended
        # A host is as bounded, whoever has it.
        people = [User.objects.create_user(f"{number}@example.org") for number in range(3)]
        for user in people:
            for _ in range(dispatch.PER_USER):
                editing.send_test(add(user, receiver))
        assert dispatch.hand_out(timezone.now()) == dispatch.PER_HOST - dispatch.PER_USER


def test_locked_account_receives_nothing(owner, conversation, webhook, receiver):
    end_run(owner, conversation)
    dispatch.hand_out(timezone.now())
    [job] = jobs()
    queue.rq_queue("low").empty()
    User.objects.update(is_active=False)
    asyncio.run(deliver(**job))
    assert work(timezone.now() + dispatch.PATIENCE) == 0
    assert receiver.requests == []
    User.objects.update(is_active=True)
    assert work(timezone.now() + dispatch.PATIENCE) == 1
    assert read().status == "delivered"


def test_low_balance_is_an_event_once_per_passing(owner, webhook, receiver):
    account = Account.objects.get(user=owner)
    for passing in (1, 2):
        money.grant(account, 1_000_000_000 * passing)
        low_balance_mail.notify_if_low(account.pk)  # high again
        spent = Account.objects.get(pk=account.pk).balance - 1_000_000
        money.spend(account, spent)
        for _ in range(2):
            low_balance_mail.notify_if_low(account.pk)
        assert WebhookDelivery.objects.count() == passing
    work()
    data = body_of(receiver, webhook)["data"]
    assert data == {"balance": "1", "available": "1", "warning": "empty"}


def test_rotated_secret_is_accepted_beside_the_new_one(owner, webhook, receiver):
    old = editing.secret_of(webhook)
    editing.rotate(webhook)
    webhook.refresh_from_db()
    new = editing.secret_of(webhook)
    assert len({old, new}) == 2
    editing.send_test(webhook)
    work()
    headers, body = receiver.requests[-1]
    for secret in (old, new):
        assert Verifier(secret).verify(body, headers)["type"] == "ping"
    Webhook.objects.update(old_secret_until=timezone.now())
    editing.send_test(webhook)
    work()
    headers, body = receiver.requests[-1]
    Verifier(new).verify(body, headers)
    with pytest.raises(WebhookVerificationError):
        Verifier(old).verify(body, headers)


def test_unreadable_secret_sends_nothing(owner, webhook, receiver):
    Webhook.objects.update(secret="none")
    editing.send_test(webhook)
    work()
    assert receiver.requests == []
    assert "secret" in read().error


def test_resent_message_keeps_its_id(owner, conversation, webhook, receiver):
    run = end_run(owner, conversation)
    Webhook.objects.update(includes_text=True)
    work()
    Message.objects.filter(run=run.pk).update(text="")
    Conversation.objects.filter(pk=conversation.pk).update(deleted_at=timezone.now())
    editing.resend(read())
    work()
    assert receiver.ids == [read().message_id] * 2
    texts = [json.loads(body)["data"]["text"] for _headers, body in receiver.requests]
    assert texts == ["A secret reply", None]


def test_text_of_temporary_chat_is_not_sent(owner, conversation, webhook, receiver):
    """But that of a call of the API is, whose conversation is temporary as well."""
    Webhook.objects.update(includes_text=True)
    run = end_run(owner, conversation)
    Conversation.objects.filter(pk=conversation.pk).update(temporary=True)
    work()
    ApiCall.objects.create(
        run=run, conversation=conversation, request="{}", created_at=timezone.now()
    )
    editing.resend(read())
    work()
    bodies = [json.loads(body)["data"] for _headers, body in receiver.requests]
    assert [body["text"] for body in bodies] == [None, "A secret reply"]
    assert {body["id"] for body in bodies} == {str(run.pk)}


@pytest.mark.parametrize(
    "url",
    ["", "x", "http://example.org/1", "https://127.0.0.1/1", "https://[::1]/1", "https://localhost/1",
     "https://10.0.0.1/", "https://2130706433/", "https://0x7f.1/", "https://user@example.org/1",
     "https://example.org:99999/", "https://example.org:0/", "file:///etc/passwd", "https://example.org/ 1",
     "https://example.org/\n", "https://[fe80::1", "https://intranet/1", "https://example.org/" + "x" * 1_000,
     "https://exämple.org/", "https://8.8.8.8/", "https://example.org\\@127.0.0.1/", "https://169.254.169.254/"],
)  # fmt: skip
def test_address_that_is_not_public_is_refused(settings, url):
    settings.WEBHOOK_NETWORKS = []
    with pytest.raises(addresses.Refused):
        addresses.check(url)
    assert asyncio.run(client.post(url, b"{}", {})).error


@pytest.mark.parametrize(
    ("address", "networks"),
    [("127.0.0.1", []), ("10.1.2.3", LOOPBACK), ("::ffff:127.0.0.1", []), ("64:ff9b::7f00:1", LOOPBACK)],
)  # fmt: skip
def test_name_with_private_address_receives_nothing(
    settings, monkeypatch, receiver, address, networks
):
    settings.WEBHOOK_NETWORKS = networks
    port = int(receiver.address.partition(":")[2])

    def resolve(*_args, **_options):
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        rest = (0, 0) if ":" in address else ()
        return [(family, socket.SOCK_STREAM, 6, "", (address, port, *rest))]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    answer = asyncio.run(client.post(f"https://example.org:{port}/", b"{}", {}))
    assert (answer.status, receiver.requests) == (None, [])
    assert "may not be contacted" in answer.error
    assert address not in answer.error
    if networks:  # without TLS only there
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_a, **_o: [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("93.184.216.34", port))
        ])  # fmt: skip
        answer = asyncio.run(client.post(f"http://example.org:{port}/", b"{}", {}))
        assert "may not be contacted" in answer.error


def test_log_is_kept_for_its_days(owner, settings, webhook):
    settings.WEBHOOK_LOG_DAYS = 5
    old, new = editing.send_test(webhook), editing.send_test(webhook)
    WebhookDelivery.objects.filter(pk=old.pk).update(created_at=timezone.now() - 6 * DAY)
    assert dispatch.backlog(datetime.now(UTC) + DAY).waiting == 2
    dispatch.clear_log(timezone.now())
    assert read() == new
