"""Outgoing webhooks: the addresses that users have registered, and the messages to them."""

from __future__ import annotations

from django.conf import settings
from django.db import models
from django.db.models import Q
from django.utils import timezone
from django.utils.translation import gettext_lazy

from chat.models.base import new_id


class Webhook(models.Model):
    """An address of a user's program that receives events (chat/webhooks/).

    It is off while `active` is False; then no event is recorded for it. `disabled` is set where the site has
    switched it off, and not its user.
    """

    class Event(models.TextChoices):
        RUN_DONE = "run.done", gettext_lazy("A reply has ended")
        CREDITS_LOW = "credits.low", gettext_lazy("Credits run low")

    class Disabled(models.TextChoices):
        FAILING = "failing", gettext_lazy("Its deliveries failed for days.")
        GONE = "gone", gettext_lazy("It answered that it no longer exists (410).")
        STAFF = "staff", gettext_lazy("The operators of this site switched it off.")

    ENCRYPTED = ("secret", "old_secret")

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    owner = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="webhooks"
    )
    name = models.CharField(max_length=60)
    url = models.CharField(max_length=1_000)
    # Of the URL: the number of deliveries to one host at the same time is bounded.
    host = models.CharField(max_length=260)
    events = models.JSONField(default=list)
    includes_text = models.BooleanField(
        default=False, help_text=gettext_lazy("Whether `run.done` has the text of the reply.")
    )
    active = models.BooleanField(default=True)
    secret = models.TextField(help_text=gettext_lazy("Encrypted."))
    old_secret = models.TextField(
        blank=True,
        default="",
        help_text=gettext_lazy("The one before, encrypted, until old_secret_until."),
    )
    old_secret_until = models.DateTimeField(null=True, blank=True)
    created_at = models.DateTimeField(default=timezone.now)
    # Since when no delivery has succeeded; empty after a success.
    failing_since = models.DateTimeField(null=True, blank=True)
    disabled = models.CharField(max_length=8, choices=Disabled, blank=True, default="")
    disabled_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["-id"]
        default_permissions = ["view", "change"]

    def __str__(self) -> str:
        return f"webhook {self.pk}"

    @property
    def event_names(self) -> list[str]:
        """The events that it receives, in words."""
        return [str(one.label) for one in self.Event if one.value in self.events]


class WebhookDelivery(models.Model):
    """A message to a webhook: the outbox row that is written with its event, and then the entry of the log.

    It is WAITING until `due_at`, QUEUED as a job, and SENDING during an attempt. A job or an attempt that has not
    ended at `due_at` lost its worker. `body` never has the text of a reply: an attempt adds it.
    """

    class Status(models.TextChoices):
        WAITING = "waiting", gettext_lazy("Waiting")
        QUEUED = "queued", gettext_lazy("Queued")
        SENDING = "sending", gettext_lazy("Being sent")
        DELIVERED = "delivered", gettext_lazy("Delivered")
        FAILED = "failed", gettext_lazy("Failed")

    OPEN = (Status.WAITING, Status.QUEUED, Status.SENDING)
    PING = "ping"  # the event that a user sends as a test

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    webhook = models.ForeignKey(
        Webhook, on_delete=models.CASCADE, related_name="deliveries", db_index=False
    )
    event = models.CharField(max_length=20)
    # No foreign key: a run may be purged before its message is delivered.
    run = models.UUIDField(null=True)
    body = models.TextField()
    status = models.CharField(max_length=9, choices=Status, default=Status.WAITING)
    attempts = models.PositiveSmallIntegerField(default=0)
    due_at = models.DateTimeField()
    created_at = models.DateTimeField()
    attempted_at = models.DateTimeField(null=True)
    # Of the last attempt; without a status it had no answer.
    response_status = models.PositiveSmallIntegerField(null=True)
    response_body = models.TextField(default="")
    error = models.CharField(max_length=300, default="")

    class Meta:
        ordering = ["-id"]
        default_permissions = ()
        indexes = [
            models.Index(fields=["webhook", "-id"], name="webhook_log"),
            models.Index(fields=["created_at"], name="webhook_delivery_age"),
            models.Index(
                fields=["due_at"],
                name="webhook_delivery_open",
                condition=Q(status__in=["waiting", "queued", "sending"]),
            ),
            models.Index(
                fields=["webhook", "due_at"],
                name="webhook_delivery_waiting",
                condition=Q(status="waiting"),
            ),
        ]

    def __str__(self) -> str:
        return self.message_id

    @property
    def message_id(self) -> str:
        """The header `webhook-id`, the same in all attempts."""
        return f"msg_{self.pk.hex}"

    @property
    def is_open(self) -> bool:
        """Whether a further attempt follows, or is being made."""
        return self.status in self.OPEN
