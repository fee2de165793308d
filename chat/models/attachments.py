"""Attachments: files of users, and the messages that have them."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.db import models
from django.db.models import Q
from django.utils.translation import gettext_lazy

from chat.models.base import new_id
from chat.models.messages import Message


class Attachment(models.Model):
    """An uploaded file of a user: an image as it was encoded anew, or a text in UTF-8.

    Its content is in the private files, and is never changed. A file that no message has is removed at
    `expires_at`; a trigger of the database sets this time when a link to a message is deleted.
    """

    class Kind(models.TextChoices):
        IMAGE = "image"
        TEXT = "text"

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    owner = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="attachments"
    )
    kind = models.CharField(max_length=5, choices=Kind)
    name = models.CharField(
        max_length=255, help_text=gettext_lazy("Its name when it was uploaded.")
    )
    content_type = models.CharField(max_length=40)
    size = models.PositiveBigIntegerField(help_text=gettext_lazy("Bytes of its files."))
    sha256 = models.CharField(max_length=64)
    file = models.CharField(max_length=64, help_text=gettext_lazy("Its name in the private files."))
    thumbnail = models.CharField(
        max_length=64,
        blank=True,
        help_text=gettext_lazy("The name of an image's thumbnail in the private files."),
    )
    width = models.PositiveIntegerField(
        null=True, blank=True, help_text=gettext_lazy("Pixels of an image.")
    )
    height = models.PositiveIntegerField(
        null=True, blank=True, help_text=gettext_lazy("Pixels of an image.")
    )
    tokens = models.PositiveIntegerField(
        default=0, help_text=gettext_lazy("Tokens of a text, about.")
    )
    counted = models.PositiveIntegerField(
        default=0,
        help_text=gettext_lazy("Tokens of a text, rather too many: for the context window."),
    )
    bound = models.PositiveIntegerField(
        default=0, help_text=gettext_lazy("Tokens that a text does not exceed: for the hold.")
    )
    created_at = models.DateTimeField(auto_now_add=True)
    expires_at = models.DateTimeField(
        null=True,
        blank=True,
        help_text=gettext_lazy("When it is removed, unless a message has it."),
    )

    class Meta:
        ordering = ["-id"]
        indexes = [
            models.Index(
                fields=["expires_at"],
                name="attachment_expiring",
                condition=Q(expires_at__isnull=False),
            ),
            models.Index(fields=["file"], name="attachment_file"),
            models.Index(
                fields=["thumbnail"], name="attachment_thumbnail", condition=~Q(thumbnail="")
            ),
        ]
        constraints = [
            models.CheckConstraint(
                condition=Q(kind="text") | Q(kind="image", width__gt=0, height__gt=0),
                name="attachment_image_has_size",
            ),
        ]

    def __str__(self) -> str:
        # Not the name, which is a user's text.
        return f"{self.kind} {self.pk}"

    @property
    def snapshot(self) -> dict[str, Any]:
        """The entry of `Message.attached`: all that a page or a prompt needs besides the content."""
        fields: dict[str, Any] = {
            "id": str(self.pk),
            "kind": self.kind,
            "name": self.name,
            "size": self.size,
        }
        if self.kind == self.Kind.IMAGE:
            return fields | {"width": self.width, "height": self.height}
        return fields | {"tokens": self.tokens, "counted": self.counted, "bound": self.bound}


class MessageAttachment(models.Model):
    """The link of a message to one of its attachments; copies of a message share the file."""

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    message = models.ForeignKey(Message, on_delete=models.CASCADE, related_name="attachment_links")
    attachment = models.ForeignKey(Attachment, on_delete=models.CASCADE, related_name="links")

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["message", "attachment"], name="attachment_once_per_message"
            ),
        ]

    def __str__(self) -> str:
        return f"attachment {self.attachment_id} of {self.message_id}"
