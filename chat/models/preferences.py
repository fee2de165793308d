"""A user's choices for new conversations."""

from __future__ import annotations

from django.conf import settings
from django.db import models

from chat.models.catalogue import LanguageModel


class ChatPreference(models.Model):
    """The model that a user's new conversations begin with, instead of the assistant's."""

    user = models.OneToOneField(
        settings.AUTH_USER_MODEL,
        primary_key=True,
        on_delete=models.CASCADE,
        related_name="chat_preference",
    )
    model = models.ForeignKey(
        LanguageModel, null=True, blank=True, on_delete=models.SET_NULL, related_name="+"
    )

    def __str__(self) -> str:
        return f"preference of user {self.user_id}"
