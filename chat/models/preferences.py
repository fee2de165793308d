"""A user's choices for new conversations."""

from __future__ import annotations

from django.conf import settings
from django.db import models
from django.utils.translation import gettext_lazy

from chat.models.catalogue import LanguageModel


class ChatPreference(models.Model):
    """The model that a user's new conversations begin with, instead of the assistant's; the use of notes."""

    user = models.OneToOneField(
        settings.AUTH_USER_MODEL,
        primary_key=True,
        on_delete=models.CASCADE,
        related_name="chat_preference",
    )
    model = models.ForeignKey(
        LanguageModel, null=True, blank=True, on_delete=models.SET_NULL, related_name="+"
    )
    # db_default: during a rolling upgrade the previous release still inserts rows.
    uses_notes = models.BooleanField(
        default=True,
        db_default=True,
        help_text=gettext_lazy("Whether replies use and write notes about the user."),
    )

    def __str__(self) -> str:
        return f"preference of user {self.user_id}"
