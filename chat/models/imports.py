"""Imports of chats from files, and the chats that came from them."""

from __future__ import annotations

from django.conf import settings
from django.db import models
from django.db.models import Q

from chat.models.base import new_id
from chat.models.conversations import Conversation


class ChatImport(models.Model):
    """An uploaded file whose chats a job stores; the row has its progress and its report."""

    class Status(models.TextChoices):
        QUEUED = "queued"
        RUNNING = "running"
        DONE = "done"
        FAILED = "failed"

    ACTIVE = (Status.QUEUED, Status.RUNNING)

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    owner = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="imports"
    )
    status = models.CharField(max_length=7, choices=Status, default=Status.QUEUED)
    attempt = models.PositiveSmallIntegerField(default=0)
    file = models.CharField(max_length=32, help_text="Its name in the private files.")
    file_name = models.CharField(max_length=255, help_text="Its name when it was uploaded.")
    size = models.PositiveBigIntegerField(help_text="Bytes of the file.")
    percent = models.PositiveSmallIntegerField(default=0)
    added = models.PositiveIntegerField(default=0)
    updated = models.PositiveIntegerField(
        default=0, help_text="Chats of an earlier import that had new messages."
    )
    known = models.PositiveIntegerField(
        default=0, help_text="Chats of an earlier import without anything new."
    )
    skipped = models.PositiveIntegerField(default=0)
    notes = models.JSONField(default=list, help_text="Titles of chats with a sentence for each.")
    error = models.CharField(max_length=300, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)
    beat_at = models.DateTimeField(help_text="When its job last made progress.")
    ended_at = models.DateTimeField(null=True, blank=True)

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

    @property
    def is_active(self) -> bool:
        return self.status in self.ACTIVE


class ImportedChat(models.Model):
    """The origin of an imported chat, by which another import finds it."""

    owner = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="+")
    source = models.CharField(max_length=20)
    source_id = models.CharField(max_length=200)
    digest = models.CharField(
        max_length=64, help_text="Of all messages, as they were last imported."
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
