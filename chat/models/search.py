"""The index of the search over messages; chat.conversations.search_index fills it."""

from __future__ import annotations

from django.conf import settings
from django.contrib.postgres.indexes import GinIndex
from django.contrib.postgres.search import SearchVectorField
from django.db import models
from django.utils.translation import gettext_lazy

from chat.models.conversations import Conversation
from chat.models.messages import Message


class SearchEntry(models.Model):
    """The words of one message.

    The database deletes an entry with its message (ON DELETE CASCADE): code of an older release does
    not know this table.
    """

    message = models.OneToOneField(
        Message,
        primary_key=True,
        on_delete=models.DO_NOTHING,
        db_constraint=False,
        related_name="+",
    )
    owner = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        on_delete=models.DO_NOTHING,
        db_constraint=False,
        db_index=False,
        related_name="+",
    )
    conversation = models.ForeignKey(
        Conversation,
        on_delete=models.DO_NOTHING,
        db_constraint=False,
        db_index=False,
        related_name="+",
    )
    text = models.TextField(
        help_text=gettext_lazy("The beginning of the message, as far as it is searched.")
    )
    vector = SearchVectorField()

    class Meta:
        indexes = [
            # Without a pending list, which each search would read from its beginning to its end.
            GinIndex(fields=["vector"], name="chat_search_words", fastupdate=False),
            models.Index(fields=["owner", "-message"], name="chat_search_newest"),
        ]

    def __str__(self) -> str:
        return f"entry of {self.message_id}"


class SearchPosition(models.Model):
    """The message up to which all messages are indexed: one row."""

    message_id = models.UUIDField()

    def __str__(self) -> str:
        return f"indexed up to {self.message_id}"
