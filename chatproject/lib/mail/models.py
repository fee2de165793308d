"""The outbox: one row per mail."""

from __future__ import annotations

from django.db import models
from django.db.models import Q
from django.utils import timezone
from django.utils.translation import gettext_lazy


class OutgoingMail(models.Model):
    """A mail on its way, or the record that it was sent.

    `content` is the message as `packing.pack` encodes it. It may hold a link that resets a password,
    so it is emptied once the mail is sent, and no page shows it.
    """

    class Status(models.TextChoices):
        QUEUED = "queued", "queued"
        SENDING = "sending", "being sent"
        SENT = "sent", "sent"
        FAILED = "failed", "failed"

    OPEN = (Status.QUEUED, Status.SENDING)

    # The same in every attempt, so that a receiver can recognise a repetition.
    message_id = models.CharField("message id", max_length=255, unique=True)
    recipients = models.TextField("recipients (hashes)")
    content = models.BinaryField(null=True)
    status = models.CharField(max_length=8, choices=Status.choices, default=Status.QUEUED)
    attempts = models.PositiveSmallIntegerField(default=0)
    # QUEUED: the time of the next attempt. SENDING: the time at which its worker counts as dead.
    due_at = models.DateTimeField()
    # The last attempt failed because of the mail server, and not because of this mail.
    is_delayed = models.BooleanField(default=False)
    error = models.CharField(
        gettext_lazy("reason of the last failure"), max_length=500, blank=True, default=""
    )
    created_at = models.DateTimeField(default=timezone.now)
    sent_at = models.DateTimeField(null=True)

    class Meta:
        verbose_name = "mail"
        verbose_name_plural = "mails"
        default_permissions = ["view"]
        permissions = [("resend_outgoingmail", gettext_lazy("Can send a failed mail again"))]
        indexes = [
            models.Index(
                fields=["due_at"], name="mail_open", condition=Q(status__in=["queued", "sending"])
            ),
            models.Index(fields=["created_at"], name="mail_age"),
        ]

    def __str__(self) -> str:
        return f"mail {self.pk}"
