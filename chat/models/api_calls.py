"""Calls of the OpenAI-compatible API: the requests of their runs."""

from __future__ import annotations

from django.db import models
from django.utils.translation import gettext_lazy

from chat.models.conversations import Conversation
from chat.models.runs import Run


class ApiCall(models.Model):
    """The request of a run that a program asked for; its conversation is temporary, and has no other run.

    The run's `model_snapshot["api"]` names the key and whether the reply is streamed. The call is purged with
    its conversation, API_KEEP_HOURS after it was made.
    """

    run = models.OneToOneField(
        Run, on_delete=models.CASCADE, primary_key=True, related_name="api_call"
    )
    conversation = models.OneToOneField(
        Conversation, on_delete=models.CASCADE, related_name="api_call"
    )
    # Text, not jsonb: it is written and read as a whole, and may have characters that jsonb refuses.
    request = models.TextField(
        help_text=gettext_lazy("The checked request as JSON (chat.conversations.api_prompt).")
    )
    created_at = models.DateTimeField(db_index=True)

    class Meta:
        verbose_name = gettext_lazy("API call")
        default_permissions = ["view"]

    def __str__(self) -> str:
        return f"API call of run {self.pk}"
