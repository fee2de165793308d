"""Notes about a user, which replies may use in all of the user's chats."""

from __future__ import annotations

from django.conf import settings
from django.db import models
from django.utils.translation import gettext_lazy as _

from chat.models.base import new_id
from chat.models.messages import Message


class UserNote(models.Model):
    """A fact about a user, written by the user or by an assistant's tool.

    `message` is the reply that made it. `call` is the id of the tool's call, so that a repetition finds the note.
    """

    class CreatedBy(models.TextChoices):
        USER = "user", _("you")
        ASSISTANT = "assistant", _("an assistant")

    MAX_CHARACTERS = 300

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="notes"
    )
    text = models.CharField(_("text"), max_length=MAX_CHARACTERS)
    created_by = models.CharField(max_length=9, choices=CreatedBy)
    message = models.ForeignKey(
        Message, null=True, blank=True, on_delete=models.SET_NULL, related_name="+"
    )
    call = models.CharField(  # two empty texts would not be unique
        max_length=100, null=True, blank=True, unique=True
    )
    created_at = models.DateTimeField(auto_now_add=True)
    updated_at = models.DateTimeField(auto_now=True)

    class Meta:
        verbose_name = _("note")
        verbose_name_plural = _("notes")
        ordering = ["id"]

    def __str__(self) -> str:
        # The text is private.
        return f"note {self.pk}"
