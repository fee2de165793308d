"""The outbox: a mail is stored with its cause, sent by a job, repeated, and emptied."""

from __future__ import annotations

import socket
import threading
import time
from datetime import timedelta
from typing import Any

import django_rq
import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission
from django.core.mail import EmailMultiAlternatives, send_mail
from django.db import transaction
from django.urls import reverse
from django.utils import timezone

from accounts.models import User
from chatproject.lib.mail import jobs, outbox, smtp
from chatproject.lib.mail.models import OutgoingMail
from chatproject.lib.redis.clients import sync_client
from tests.support.fake_mail import mail_server
from tests.support.threads import race

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("by_outbox")]

TO = "reader@example.org"
SECRET = "https://chat.example.org/accounts/password/reset/key/1-abc/"


def a_mail(to: str = TO) -> OutgoingMail:
    send_mail("Hello", f"Open {SECRET}", None, [to])
    return OutgoingMail.objects.latest("pk")


def stored_jobs():
    return django_rq.get_queue("low").jobs


def work() -> None:
    """Run all queued jobs, as a worker does."""
    queue = django_rq.get_queue("low")
    for job in queue.jobs:
        queue.remove(job)
        job.func(**job.kwargs)


def make_due() -> None:
    OutgoingMail.objects.filter(status="queued").update(due_at=timezone.now())


def test_purged_accounts_receive_no_mail(by_outbox):
    send_mail("Refund", "Money", None, ["erased-7@erased.invalid"])
    assert not OutgoingMail.objects.exists()
    send_mail("Refund", "Money", None, ["Erased <erased-7@Erased.INVALID>", TO])
    assert OutgoingMail.objects.get().recipients == outbox.hash_of(TO)


def test_mail_is_sent_by_a_job_and_emptied(by_outbox):
    with mail_server(by_outbox.EMAIL_PORT) as server:
        mail = a_mail()
        [job] = stored_jobs()
        assert job.kwargs == {"mail_id": mail.pk, "attempt": 0}
        assert SECRET.encode() not in job.data
        work()
    [received] = server.received
    assert received["To"] == TO
    assert received["Message-ID"] == mail.message_id
    assert SECRET in received.get_payload()
    mail.refresh_from_db()
    assert (mail.status, mail.content, mail.attempts, mail.error) == ("sent", None, 1, "")
    assert TO not in mail.recipients


def test_all_parts_of_a_message_are_kept(by_outbox):
    message = EmailMultiAlternatives(
        "Hello", "Text", to=[TO], cc=["two@example.org"], reply_to=["ask@example.org"]
    )
    message.attach_alternative("<p>Text</p>", "text/html")
    message.attach("a.bin", b"\x00\xff", "application/octet-stream")
    message.attach("a.txt", "café", "text/plain")
    with mail_server(by_outbox.EMAIL_PORT) as server:
        message.send()
        work()
    [received] = server.received
    assert (received["Cc"], received["Reply-To"]) == ("two@example.org", "ask@example.org")
    parts = {part.get_content_type(): part for part in received.walk()}
    assert {"text/plain", "text/html", "application/octet-stream"} <= parts.keys()
    assert parts["application/octet-stream"].get_payload(decode=True) == b"\x00\xff"


def test_mail_of_rolled_back_transaction_is_not_sent(by_outbox):
    with transaction.atomic():
        a_mail()
        transaction.set_rollback(True)
    assert not OutgoingMail.objects.exists()
    assert stored_jobs() == []


def test_unreachable_server_delays_mail_until_it_returns(by_outbox):
    mail = a_mail()
    work()
    mail.refresh_from_db()
    assert (mail.status, mail.attempts, mail.is_delayed) == ("queued", 1, True)
    assert "ConnectionRefusedError" in mail.error
    assert mail.due_at > timezone.now() + timedelta(seconds=20)
    others = [a_mail() for _ in range(5)]
    # One mail at a time tests the server.
    assert stored_jobs() == []
    make_due()
    outbox.enqueue_due(timezone.now())
    assert len(stored_jobs()) == 1
    with mail_server(by_outbox.EMAIL_PORT) as server:
        work()
        assert not outbox.is_delayed()
        make_due()
        outbox.enqueue_due(timezone.now())
        work()
    assert len(server.received) == 1 + len(others)
    assert len({message["Message-ID"] for message in server.received}) == 1 + len(others)
    assert set(OutgoingMail.objects.values_list("status", "content")) == {("sent", None)}


def test_mail_that_redis_lost_is_enqueued_again(by_outbox, valkey_client):
    mail = a_mail()
    valkey_client.flushall()
    outbox.enqueue_due(timezone.now())
    assert stored_jobs() == []  # its first job has some time
    outbox.enqueue_due(timezone.now() + outbox.PATIENCE)
    assert [job.kwargs["mail_id"] for job in stored_jobs()] == [mail.pk]


def test_mail_is_stored_while_redis_is_unreachable(by_outbox, own_valkey, caplog):
    by_outbox.REDIS_URL = own_valkey.url
    sync_client.cache_clear()
    outbox.low_queue.cache_clear()
    own_valkey.stop()
    try:
        a_mail()
    finally:
        sync_client.cache_clear()
        outbox.low_queue.cache_clear()
    assert OutgoingMail.objects.get().status == "queued"
    assert "is left to the clock" in caplog.text


def test_concurrent_jobs_send_one_mail(by_outbox):
    mail = a_mail()
    with mail_server(by_outbox.EMAIL_PORT) as server:
        race([lambda: jobs.send(mail.pk, 0)] * 12)
    assert len(server.received) == 1


def test_worker_that_died_leaves_mail_to_another(by_outbox):
    """The worker is presumed dead while the mail server keeps it waiting; later it changes nothing."""
    mail = a_mail()
    with mail_server(by_outbox.EMAIL_PORT) as server:
        started, go_on = threading.Event(), threading.Event()

        def wait(self, line: str) -> None:
            if line.startswith("354"):
                started.set()
                go_on.wait(10)
            self.wfile.write(f"{line}\r\n".encode())

        handler: Any = server.RequestHandlerClass
        by_outbox.EMAIL_TIMEOUT = 20
        original = handler.answer
        handler.answer = wait
        try:
            slow = threading.Thread(target=race, args=[[lambda: jobs.send(mail.pk, 0)]])
            slow.start()
            assert started.wait(10)
            handler.answer = original
            outbox.enqueue_due(timezone.now() + outbox.ATTEMPT_TIME)
            assert {job.kwargs["attempt"] for job in stored_jobs()} == {0, 1}
            jobs.send(mail.pk, 1)
            mail.refresh_from_db()
            assert (mail.status, mail.attempts) == ("sent", 2)
            sent_at = mail.sent_at
        finally:
            go_on.set()
            slow.join()
            handler.answer = original
    mail.refresh_from_db()
    assert (mail.status, mail.attempts, mail.sent_at) == ("sent", 2, sent_at)
    first, second = server.received
    assert first["Message-ID"] == second["Message-ID"]


@pytest.mark.parametrize(
    ("answers", "status"),
    [
        ({"RCPT": f"550 <{TO}> unknown"}, "failed"),
        ({"RCPT": f"451 <{TO}> try later"}, "queued"),
        ({"RCPT": f"550 <{TO.upper()}> unknown"}, "failed"),
        ({"DATA": "554 spam"}, "failed"),
        ({"DATA": f"554 {SECRET} is listed"}, "failed"),
        ({"MAIL": "451 busy"}, "queued"),
    ],
)
def test_refused_mail_keeps_its_reason_without_secrets(by_outbox, answers, status):
    mail = a_mail()
    with mail_server(by_outbox.EMAIL_PORT) as server:
        server.answers = answers
        work()
    mail.refresh_from_db()
    assert (mail.status, mail.is_delayed) == (status, False)
    assert next(iter(answers.values()))[:3] in mail.error
    assert TO not in mail.error.lower()
    assert "1-abc" not in mail.error


def test_attempts_end_with_a_reason(by_outbox):
    mail = a_mail()
    for attempt in range(outbox.MAX_ATTEMPTS):
        jobs.send(mail.pk, attempt)
    mail.refresh_from_db()
    assert (mail.status, mail.attempts) == ("failed", outbox.MAX_ATTEMPTS)
    assert "ConnectionRefusedError" in mail.error
    assert not outbox.is_delayed()


def test_silent_mail_server_has_a_time_limit(by_outbox):
    by_outbox.EMAIL_TIMEOUT = 0.2
    with socket.create_server(("127.0.0.1", by_outbox.EMAIL_PORT)):
        mail = a_mail()
        work()
    mail.refresh_from_db()
    assert (mail.status, mail.is_delayed) == ("queued", True)


def test_dripping_mail_server_has_a_time_limit(by_outbox, monkeypatch):
    """Each byte comes in time, the answer does not."""
    monkeypatch.setattr(smtp, "SECONDS", 0.5)
    with mail_server(by_outbox.EMAIL_PORT) as server:
        server.drip = 0.02
        mail = a_mail()
        began = time.monotonic()
        work()
        assert time.monotonic() - began < 2
    mail.refresh_from_db()
    assert (mail.status, mail.is_delayed) == ("queued", True)
    assert "too slow" in mail.error


@pytest.mark.parametrize(("code", "status"), [(550, "failed"), (451, "queued")])
def test_refused_recipient_gets_a_mail_of_its_own(by_outbox, code, status):
    with mail_server(by_outbox.EMAIL_PORT) as server:
        server.answers = {f"rcpt TO:<{TO}>": f"{code} <{TO}> no"}
        send_mail("Hello", "Text", None, ["a@example.org", TO, "b@example.org"])
        work()
        sent, apart = OutgoingMail.objects.order_by("pk")
        assert (sent.status, apart.status) == ("sent", "queued")
        assert apart.recipients == outbox.hash_of(TO)
        work()
        apart.refresh_from_db()
        assert (apart.status, apart.is_delayed) == (status, False)
        assert str(code) in apart.error
        server.answers = {}
        make_due()
        outbox.enqueue_due(timezone.now())
        work()
    received = [(mail["To"], mail["Message-ID"]) for mail in server.received]
    assert received[0] == (f"a@example.org, {TO}, b@example.org", sent.message_id)
    assert received[1:] == ([(TO, apart.message_id)] if status == "queued" else [])


def test_old_rows_and_texts_are_deleted(by_outbox):
    sent, failed, waiting = a_mail(), a_mail(), a_mail()
    OutgoingMail.objects.filter(pk=sent.pk).update(status="sent", content=None)
    OutgoingMail.objects.filter(pk=failed.pk).update(status="failed")
    outbox.clear(timezone.now() + timedelta(days=8))
    assert OutgoingMail.objects.get(pk=failed.pk).content is None
    outbox.clear(timezone.now() + timedelta(days=31))
    assert OutgoingMail.objects.get() == waiting
    assert waiting.content


def test_admin_shows_fate_but_no_text(by_outbox, client):
    mail = a_mail()
    OutgoingMail.objects.update(status="failed", error="SMTPDataError: spam")
    staff = User.objects.create_user("clerk@example.org", "x", is_staff=True)
    staff.user_permissions.add(Permission.objects.get(codename="view_outgoingmail"))
    client.force_login(staff)
    listed = reverse("admin:mail_outgoingmail_changelist")
    pages = [
        client.get(listed, {"q": TO.upper()}).content.decode(),
        client.get(reverse("admin:mail_outgoingmail_change", args=[mail.pk])).content.decode(),
    ]
    for page in pages:
        assert "SMTPDataError: spam" in page
        assert "reset/key" not in page
        assert TO not in page.replace(f'value="{TO.upper()}"', "")
    assert "SMTPDataError" not in client.get(listed, {"q": "other@example.org"}).content.decode()
    action = {"action": "send_again", "_selected_action": [mail.pk]}
    client.post(listed, action)
    assert OutgoingMail.objects.get().status == "failed"
    staff.user_permissions.add(Permission.objects.get(codename="resend_outgoingmail"))
    client.post(listed, action)
    assert OutgoingMail.objects.get().status == "queued"
    assert LogEntry.objects.filter(user=staff, change_message="Sent again").count() == 1


def test_mail_becomes_a_private_file(by_outbox, tmp_path):
    by_outbox.MAIL_TRANSPORT = "chatproject.lib.mail.files.EmailBackend"
    by_outbox.EMAIL_FILE_PATH = str(tmp_path / "mails")
    sent = a_mail()
    outbox.send(sent.pk, 0)
    [file] = (tmp_path / "mails").iterdir()
    assert SECRET in file.read_text()
    assert file.stat().st_mode & 0o077 == 0
    sent.refresh_from_db()
    assert sent.status == "sent"
