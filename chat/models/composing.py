"""Texts that a user has written and not sent: the message that follows a reply, and drafts."""

from __future__ import annotations

from datetime import timedelta

from django.conf import settings
from django.db import models
from django.db.models import Q
from django.utils import timezone
from django.utils.translation import gettext_lazy

from chat.models.conversations import Conversation


class NextMessage(models.Model):
    """The message of a conversation that is sent when the present reply has ended.

    The row stays afterwards, without a text: it remembers the requests that were answered.
    """

    class State(models.TextChoices):
        """WAITING is sent automatically, PAUSED when its user decides; NONE has no text."""

        NONE = ""
        WAITING = "waiting"
        PAUSED = "paused"

    # In this file the database deletes along (ON DELETE CASCADE): code of an older release does not know
    # these tables.
    conversation = models.OneToOneField(
        Conversation,
        primary_key=True,
        on_delete=models.DO_NOTHING,
        db_constraint=False,
        related_name="next_message",
    )
    state = models.CharField(max_length=7, choices=State, default=State.NONE, blank=True)
    text = models.TextField(blank=True)
    client_id = models.CharField(
        max_length=64, help_text=gettext_lazy("Under which it will be sent.")
    )
    client_ids = models.JSONField(
        default=list,
        help_text=gettext_lazy("Of the latest requests, so that a repetition has no effect."),
    )
    choice = models.JSONField(
        default=dict, help_text=gettext_lazy("The model and settings that its user chose for it.")
    )
    attachment_ids = models.JSONField(default=list)
    code = models.CharField(
        max_length=30, blank=True, help_text=gettext_lazy("Why it was not sent.")
    )
    problem = models.TextField(
        blank=True, help_text=gettext_lazy("The same for its user, in the user's language.")
    )
    tries = models.PositiveSmallIntegerField(default=0)
    due_at = models.DateTimeField(
        default=timezone.now, help_text=gettext_lazy("Not tried again before.")
    )
    version = models.PositiveIntegerField(
        default=0, help_text=gettext_lazy("Grows with each change.")
    )

    class Meta:
        indexes = [
            models.Index(
                fields=["due_at"], name="next_message_waiting", condition=Q(state="waiting")
            ),
        ]
        constraints = [
            models.CheckConstraint(
                condition=Q(state__in=["", "waiting", "paused"]), name="next_message_state_known"
            ),
            models.CheckConstraint(
                condition=~Q(state="") | Q(text="", attachment_ids=[]),
                name="next_message_none_is_empty",
            ),
        ]

    def __str__(self) -> str:
        return f"next message of {self.conversation_id}"


class Draft(models.Model):
    """The unsent text of a user in a conversation, or (without one) in a new chat.

    An emptied draft stays as a row, so that an older edit of another device does not bring its text back.
    """

    user = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        on_delete=models.DO_NOTHING,
        db_constraint=False,
        db_index=False,
        related_name="+",
    )
    conversation = models.ForeignKey(
        Conversation,
        null=True,
        blank=True,
        on_delete=models.DO_NOTHING,
        db_constraint=False,
        related_name="+",
    )
    text = models.TextField(blank=True)
    edited_at = models.DateTimeField(
        help_text=gettext_lazy("When the text was typed, by the server's clock.")
    )

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["user", "conversation"],
                name="draft_of_conversation",
                condition=Q(conversation__isnull=False),
            ),
            models.UniqueConstraint(
                fields=["user"], name="draft_of_new_chat", condition=Q(conversation=None)
            ),
        ]

    def __str__(self) -> str:
        return f"draft of user {self.user_id}"

    @property
    def age_ms(self) -> int:
        """Milliseconds since the text was typed."""
        return max(0, (timezone.now() - self.edited_at) // timedelta(milliseconds=1))
