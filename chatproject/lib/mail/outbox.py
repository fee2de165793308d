"""Storing, sending and clearing the mails of the outbox.

A mail is sent at least once. Its worker claims an attempt by compare-and-set; a worker that dies after
the mail server has accepted the mail leaves it to another attempt, with the same Message-ID.

While the mail server is unreachable (a mail is marked as delayed), one mail at a time tests it, as a
circuit breaker does, so that no worker spends its threads on waiting; the first mail that leaves
brings all delayed ones forward.
"""

from __future__ import annotations

import logging
import re
import smtplib
from dataclasses import dataclass
from datetime import datetime, timedelta
from email.utils import formatdate, make_msgid
from functools import cache

import django_rq
import redis
from django.conf import settings
from django.core.mail import EmailMessage, get_connection
from django.db import transaction
from django.db.models import Count, F, Min, Q
from django.utils import timezone
from django.utils.crypto import salted_hmac
from rq.queue import Queue

from chatproject.lib import db, log_context, metrics
from chatproject.lib.log_scrubbing import scrub
from chatproject.lib.mail.models import OutgoingMail
from chatproject.lib.mail.packing import pack, unpack
from chatproject.lib.mail.smtp import PartlyRefused
from chatproject.lib.redis.clients import sync_client

logger = logging.getLogger(__name__)

QUEUE = "low"
JOB = "chatproject.lib.mail.jobs.send"

MAX_ATTEMPTS = 12
FIRST_PAUSE = timedelta(seconds=30)  # after a failure, doubled with each further one
MAX_PAUSE = timedelta(minutes=30)
# The job of a new mail is enqueued after the commit; the clock enqueues it again after this time.
PATIENCE = timedelta(seconds=30)
# Longer than the time limit of a job of QUEUE: an attempt without a result lost its worker.
ATTEMPT_TIME = timedelta(minutes=3)
BATCH = 200  # mails enqueued in one turn of the clock
CLEARED = 5_000  # rows deleted in one turn

# Time for which the text of a mail that failed is kept, for "Send again", and for which rows are.
FAILED_TEXT_KEPT = timedelta(days=7)
ROWS_KEPT = timedelta(days=30)

DAY = timedelta(days=1)

Status = OutgoingMail.Status


def is_configured() -> bool:
    """Return whether this site sends mail."""
    return bool(settings.EMAIL_BACKEND != "django.core.mail.backends.dummy.EmailBackend")


def is_delayed() -> bool:
    """Return whether mails wait because the mail server is unreachable or refuses the site."""
    return OutgoingMail.objects.filter(status__in=OutgoingMail.OPEN, is_delayed=True).exists()


@dataclass(frozen=True, slots=True)
class OutboxState:
    """Mails that are not sent yet, and mails of the last day that were given up.

    `oldest` is the age in seconds of the oldest that is not sent yet, if there is one.
    """

    waiting: int
    failed: int
    oldest: float | None
    is_delayed: bool


def state(now: datetime) -> OutboxState:
    """Count the mails of the outbox."""
    waiting = OutgoingMail.objects.filter(status__in=OutgoingMail.OPEN).aggregate(
        count=Count("pk"),
        oldest=Min("created_at"),
        delayed=Count("pk", filter=Q(is_delayed=True)),
    )
    failed = OutgoingMail.objects.filter(status=Status.FAILED, created_at__gte=now - DAY).count()
    oldest = waiting["oldest"]
    return OutboxState(
        waiting=waiting["count"],
        failed=failed,
        oldest=(now - oldest).total_seconds() if oldest else None,
        is_delayed=waiting["delayed"] > 0,
    )


def hash_of(address: str) -> str:
    """Return the keyed hash by which the outbox remembers a recipient."""
    return salted_hmac("mail.recipient", address.strip().lower()).hexdigest()[:16]


def store(message: EmailMessage) -> None:
    """Store a message in the caller's transaction, and enqueue it after the commit.

    Raises ValueError for a line break in a header.
    """
    message.message()  # raises for a message that no attempt could send
    now = timezone.now()
    domain = message.from_email.rpartition("@")[2].rstrip("> ") or None
    message.extra_headers.setdefault("Message-ID", make_msgid(domain=domain))
    message.extra_headers.setdefault("Date", formatdate(now.timestamp()))
    waits = is_delayed()
    mail = OutgoingMail.objects.create(
        message_id=message.extra_headers["Message-ID"],
        recipients=" ".join(hash_of(address) for address in message.recipients()),
        content=pack(message),
        due_at=now if waits else now + PATIENCE,
    )
    if not waits:
        db.after_commit(_enqueue_new, mail.pk)


def _enqueue_new(mail_id: int) -> None:
    """Enqueue a mail that was just stored; while Redis is unreachable the clock does it later."""
    try:
        _enqueue(mail_id, 0)
    except redis.RedisError as error:
        logger.warning("mail %d is left to the clock: %s", mail_id, error)


def _enqueue(mail_id: int, attempt: int) -> None:
    low_queue().enqueue_call(
        func=JOB,
        kwargs={"mail_id": mail_id, "attempt": attempt},
        meta=log_context.carried(),
        description=f"mail {mail_id}, attempt {attempt + 1}",
    )


@cache
def low_queue() -> Queue:
    """Return the queue of the jobs that send mails."""
    # "auto" enqueues at once: this module calls it after the commit.
    return django_rq.get_queue(QUEUE, commit_mode="auto", connection=sync_client())


def enqueue_due(now: datetime) -> None:
    """Enqueue the mails whose job was lost or whose next attempt is due.

    Called by the clock. Raises redis.RedisError while Redis is unreachable; the mails marked by then
    are due again after PATIENCE.
    """
    if not settings.MAIL_TRANSPORT:
        return
    due = OutgoingMail.objects.filter(due_at__lte=now)
    lost = due.filter(status=Status.SENDING)
    lost.filter(attempts__gte=MAX_ATTEMPTS).update(
        status=Status.FAILED, is_delayed=False, error="The workers that sent it were lost."
    )
    lost.update(status=Status.QUEUED)
    limit = BATCH
    if is_delayed():
        if OutgoingMail.objects.filter(status=Status.SENDING).exists():
            return
        limit = 1
    with transaction.atomic():
        claimed = list(
            due.filter(status=Status.QUEUED)
            .select_for_update(skip_locked=True, no_key=True)
            .order_by("due_at", "pk")
            .values_list("pk", "attempts")[:limit]
        )
        OutgoingMail.objects.filter(pk__in=[pk for pk, _ in claimed]).update(due_at=now + PATIENCE)
    for mail_id, attempt in claimed:
        _enqueue(mail_id, attempt)


def send(mail_id: int, attempt: int) -> None:
    """Send a mail, unless another job has claimed this attempt; attempts are counted from 0.

    A failure is not raised: it is stored, and the clock repeats the attempt.
    """
    if not settings.MAIL_TRANSPORT:
        return
    claimed = OutgoingMail.objects.filter(
        pk=mail_id, status=Status.QUEUED, attempts=attempt, content__isnull=False
    ).update(
        status=Status.SENDING, attempts=F("attempts") + 1, due_at=timezone.now() + ATTEMPT_TIME
    )
    if not claimed:
        return
    mail = OutgoingMail.objects.get(pk=mail_id)
    # Fencing: a worker that was presumed dead changes nothing afterwards.
    ours = OutgoingMail.objects.filter(pk=mail_id, status=Status.SENDING, attempts=attempt + 1)
    message = unpack(bytes(mail.content or b""))
    refused: list[str] = []
    try:
        get_connection(settings.MAIL_TRANSPORT).send_messages([message])
    except PartlyRefused as error:
        refused = [*error.recipients]
    except (OSError, ValueError) as error:  # smtplib's exceptions are OSErrors
        is_final = attempt + 1 >= MAX_ATTEMPTS or is_permanent(error)
        metrics.MAILS.labels("failed" if is_final else "delayed").inc()
        ours.update(
            status=Status.FAILED if is_final else Status.QUEUED,
            due_at=timezone.now() + min(FIRST_PAUSE * 2**attempt, MAX_PAUSE),
            is_delayed=not is_final and not is_about_the_mail(error),
            error=reason(error, message),
        )
        logger.warning(
            "mail %d, attempt %d of %d failed: %s",
            mail_id,
            attempt + 1,
            MAX_ATTEMPTS,
            reason(error, message),
        )
        return
    metrics.MAILS.labels("sent").inc()
    with transaction.atomic():
        is_ours = ours.update(
            status=Status.SENT, content=None, is_delayed=False, error="", sent_at=timezone.now()
        )
        if is_ours and refused:
            _store_for(refused, message)
    OutgoingMail.objects.filter(status=Status.QUEUED, is_delayed=True).update(
        is_delayed=False, due_at=timezone.now()
    )


def _store_for(refused: list[str], message: EmailMessage) -> None:
    """Store a mail of their own for the recipients that were refused, while others received it."""
    message.to, message.cc, message.bcc = refused, [], []
    del message.extra_headers["Message-ID"]
    store(message)


def is_about_the_mail(error: Exception) -> bool:
    """Return whether an attempt failed because of the mail, and not because of the mail server."""
    return isinstance(
        error,
        (
            smtplib.SMTPRecipientsRefused,
            smtplib.SMTPSenderRefused,
            smtplib.SMTPDataError,
            ValueError,
        ),
    )


def is_permanent(error: Exception) -> bool:
    """Return whether a repetition of the attempt would fail in the same way (SMTP codes from 500)."""
    if isinstance(error, smtplib.SMTPRecipientsRefused):
        return all(code >= 500 for code, _ in error.recipients.values())
    if isinstance(error, smtplib.SMTPDataError):
        return error.smtp_code >= 500
    return isinstance(error, ValueError)


def reason(error: Exception, message: EmailMessage) -> str:
    """Return an error as one line without the addresses of the recipients, and without keys.

    A mail server may quote the link that it refuses.
    """
    text = scrub(re.sub(r"\s+", " ", f"{type(error).__name__}: {error}"))
    for address in message.recipients():
        text = re.sub(re.escape(address), "(recipient)", text, flags=re.IGNORECASE)
    return text.replace("\x00", "")[:500]


def send_again(mail: OutgoingMail) -> bool:
    """Queue a failed mail with new attempts; return False if it did not fail or its text is deleted."""
    again = OutgoingMail.objects.filter(
        pk=mail.pk, status=Status.FAILED, content__isnull=False
    ).update(status=Status.QUEUED, attempts=0, due_at=timezone.now())
    return bool(again)


def clear(now: datetime) -> None:
    """Delete the texts of old failed mails, and a batch of old rows; called by the clock."""
    ended = OutgoingMail.objects.exclude(status__in=OutgoingMail.OPEN)
    ended.filter(created_at__lt=now - FAILED_TEXT_KEPT, content__isnull=False).update(content=None)
    old = ended.filter(created_at__lt=now - ROWS_KEPT).order_by("created_at")
    OutgoingMail.objects.filter(pk__in=list(old.values_list("pk", flat=True)[:CLEARED])).delete()
