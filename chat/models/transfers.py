"""Imports of chats from files, the chats that came from them, and exports of all chats of a user."""

from __future__ import annotations

from datetime import datetime, timedelta

from django.conf import settings
from django.db import models
from django.db.models import Q
from django.utils import timezone
from django.utils.translation import gettext_lazy

from chat.models.base import new_id
from chat.models.conversations import Conversation

EXPORT_KEPT = timedelta(days=1)  # after its end


class Transfer(models.Model):
    """A job that reads or writes a private file of a user; the row has its progress and its report."""

    class Status(models.TextChoices):
        QUEUED = "queued"
        RUNNING = "running"
        DONE = "done"
        FAILED = "failed"
        STOPPED = "stopped"

    ACTIVE = (Status.QUEUED, Status.RUNNING)

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    owner = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="%(class)ss"
    )
    status = models.CharField(max_length=7, choices=Status, default=Status.QUEUED)
    attempt = models.PositiveSmallIntegerField(default=0)
    file = models.CharField(max_length=32, help_text=gettext_lazy("Its name in the private files."))
    size = models.PositiveBigIntegerField(help_text=gettext_lazy("Bytes of the file."))
    percent = models.PositiveSmallIntegerField(default=0)
    error = models.CharField(max_length=300, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)
    beat_at = models.DateTimeField(help_text=gettext_lazy("When its job last made progress."))
    ended_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        abstract = True

    @property
    def is_active(self) -> bool:
        return self.status in self.ACTIVE


class ChatImport(Transfer):
    """An uploaded file whose chats a job stores."""

    KIND = "import"

    owner = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="imports"
    )
    file_name = models.CharField(
        max_length=255, help_text=gettext_lazy("Its name when it was uploaded.")
    )
    added = models.PositiveIntegerField(default=0)
    updated = models.PositiveIntegerField(
        default=0, help_text=gettext_lazy("Chats of an earlier import that had new messages.")
    )
    known = models.PositiveIntegerField(
        default=0, help_text=gettext_lazy("Chats of an earlier import without anything new.")
    )
    skipped = models.PositiveIntegerField(default=0)
    stored = models.PositiveBigIntegerField(
        default=0, db_default=0, help_text=gettext_lazy("Bytes of text that it has stored.")
    )
    notes = models.JSONField(
        default=list, help_text=gettext_lazy("Titles of chats with a sentence for each.")
    )

    class Meta:
        ordering = ["-id"]
        constraints = [
            models.UniqueConstraint(
                fields=["owner"],
                condition=Q(status__in=["queued", "running"]),
                name="import_one_at_a_time",
            ),
        ]

    def __str__(self) -> str:
        return f"import {self.pk}"


class ChatExport(Transfer):
    """An archive with all chats or all data of a user, which a job writes; it can be downloaded for EXPORT_KEPT."""

    KIND = "export"

    owner = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="exports"
    )
    file = models.CharField(
        max_length=32,
        blank=True,
        help_text="Its name in the private files; empty before and after it exists.",
    )
    size = models.PositiveBigIntegerField(default=0, help_text=gettext_lazy("Bytes of the file."))
    chats = models.PositiveIntegerField(default=0)
    everything = models.BooleanField(
        default=False,
        db_default=False,
        help_text=gettext_lazy("All data of the user, not the chats alone."),
    )
    language = models.CharField(
        max_length=20, help_text=gettext_lazy("Of the words in its documents.")
    )

    class Meta:
        ordering = ["-id"]
        constraints = [
            models.UniqueConstraint(
                fields=["owner"],
                condition=Q(status__in=["queued", "running"]),
                name="export_one_at_a_time",
            ),
        ]

    def __str__(self) -> str:
        return f"export {self.pk}"

    @property
    def is_ready(self) -> bool:
        """Whether the archive can be downloaded now."""
        return bool(self.file) and self.status == self.Status.DONE and self.ends_at > timezone.now()

    @property
    def ends_at(self) -> datetime:
        """The time at which the archive is removed."""
        return (self.ended_at or self.created_at) + EXPORT_KEPT


class ImportedChat(models.Model):
    """The origin of an imported chat, by which another import finds it."""

    owner = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="+")
    source = models.CharField(max_length=20)
    source_id = models.CharField(max_length=200)
    digest = models.CharField(
        max_length=64, help_text=gettext_lazy("Of all messages, as they were last imported.")
    )
    conversation = models.ForeignKey(Conversation, on_delete=models.CASCADE, related_name="+")

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["owner", "source", "source_id"], name="imported_chat_once"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.source} {self.source_id}"
