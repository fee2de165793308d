"""A conversation: a tree of messages with a leaf.

`leaf` is the last message that the page shows. The path from the root to the leaf is shown on the
page and sent to the model.
"""

from __future__ import annotations

from typing import Any, ClassVar

from django.conf import settings
from django.db import models
from django.db.models import Q
from django.urls import reverse
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from chat.models.base import new_id
from chat.models.catalogue import Assistant, LanguageModel
from chat.models.projects import Project


class ConversationQuerySet(models.QuerySet["Conversation"]):
    def not_deleted(self) -> ConversationQuerySet:
        """Exclude deleted conversations."""
        return self.filter(deleted_at=None)

    def with_lock(self) -> ConversationQuerySet:
        """Lock the rows until the COMMIT; assistant and model are read along, and not locked."""
        return self.select_related(
            "assistant__model__provider", "model__provider"
        ).select_for_update(no_key=True, of=("self",))


class Conversation(models.Model):
    """A conversation of one user with an assistant."""

    class TitledBy(models.TextChoices):
        PERSON = "person"
        MODEL = "model"

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    owner = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="conversations"
    )
    assistant = models.ForeignKey(Assistant, on_delete=models.PROTECT, related_name="conversations")
    # The choice of its user. Defaults of the database as well, as in LanguageModel; without an index,
    # as only the deletion of a model looks for them.
    model = models.ForeignKey(
        LanguageModel,
        null=True,
        blank=True,
        on_delete=models.SET_NULL,
        related_name="+",
        db_index=False,
        help_text=gettext_lazy("Empty: the assistant's."),
    )
    temperature = models.FloatField(
        null=True, blank=True, help_text=gettext_lazy("Empty: the assistant's.")
    )
    reasoning_effort = models.CharField(
        max_length=10,
        blank=True,
        default="",
        db_default="",
        help_text=gettext_lazy("Empty: the model's own."),
    )
    # Without an index of its own: `conversation_in_project` has the rows that have one.
    project = models.ForeignKey(
        Project,
        null=True,
        blank=True,
        on_delete=models.SET_NULL,
        related_name="conversations",
        db_index=False,
    )
    # For the undo of a move, also of the one by which the deletion of a project moved it.
    moved_at = models.DateTimeField(null=True, blank=True, editable=False)
    moved_from = models.UUIDField(null=True, blank=True, editable=False)
    system_prompt = models.TextField(
        blank=True, default="", db_default="", help_text=gettext_lazy("Added to the assistant's.")
    )
    title = models.CharField(max_length=100, blank=True)
    leaf = models.ForeignKey(
        "Message", null=True, blank=True, on_delete=models.SET_NULL, related_name="+"
    )
    # No foreign key: it would cost an index, and a deleted message has no replies.
    compared = models.UUIDField(
        null=True,
        blank=True,
        editable=False,
        help_text=gettext_lazy(
            "The message whose replies are compared, until one of them is chosen."
        ),
    )
    client_id = models.CharField(  # noqa: DJ001 # two empty texts would not be unique
        max_length=64,
        null=True,
        blank=True,
        help_text=gettext_lazy(
            "Named by the client that began it with its first message, so that a repetition finds it."
        ),
    )
    created_at = models.DateTimeField(auto_now_add=True)
    updated_at = models.DateTimeField(
        help_text=gettext_lazy("When the last message was sent or finished.")
    )
    deleted_at = models.DateTimeField(null=True, blank=True)
    pinned_at = models.DateTimeField(null=True, blank=True)
    archived_at = models.DateTimeField(
        null=True,
        blank=True,
        help_text=gettext_lazy("Archived chats are left out of the lists but that of the archive."),
    )
    # db_default: during a rolling upgrade the old version still inserts rows.
    unread = models.BooleanField(
        default=False,
        db_default=False,
        help_text=gettext_lazy("A reply has ended that the owner has not seen on any device."),
    )
    temporary = models.BooleanField(
        default=False,
        db_default=False,
        help_text=gettext_lazy("In no list; purged when it is closed."),
    )
    opened_at = models.DateTimeField(
        null=True,
        blank=True,
        help_text=gettext_lazy("Of a temporary chat: when its last page was made."),
    )
    closed_at = models.DateTimeField(
        null=True,
        blank=True,
        help_text=gettext_lazy("Of a temporary chat: when that page was closed."),
    )
    has_next = models.BooleanField(
        default=False,
        db_default=False,
        help_text=gettext_lazy(
            "It has a NextMessage. Here as well, so that the end of a reply finds it without a query."
        ),
    )
    # Whether it may have a ConversationDocument: kept here by chat.documents.binding, so that a reply without
    # documents needs no query.
    has_own_documents = models.BooleanField(default=False, db_default=False, editable=False)
    titled_by = models.CharField(
        max_length=6,
        choices=TitledBy,
        blank=True,
        default="",
        db_default="",
        help_text=gettext_lazy("Empty: the title is the first line of the first message."),
    )

    objects: ClassVar[Any] = ConversationQuerySet.as_manager()

    # The notes about the user who writes in it (chat.conversations.notes); read while a message is stored.
    notes: list[str] | None = None

    class Meta:
        ordering = ["-updated_at"]
        indexes = [
            models.Index(
                fields=["owner", "-updated_at", "-id"],
                name="conversation_shown",
                condition=Q(deleted_at=None, archived_at=None),
            ),
            models.Index(
                fields=["owner", "-pinned_at"],
                name="conversation_pinned",
                condition=Q(deleted_at=None, archived_at=None, pinned_at__isnull=False),
            ),
            models.Index(
                fields=["owner", "-archived_at", "-id"],
                name="conversation_archived",
                condition=Q(deleted_at=None, archived_at__isnull=False),
            ),
            models.Index(
                fields=["project", "-updated_at", "-id"],
                name="conversation_in_project",
                condition=Q(project__isnull=False),
            ),
            models.Index(
                fields=["owner", "moved_at"],
                name="conversation_moved",
                condition=Q(moved_at__isnull=False),
            ),
            models.Index(
                fields=["updated_at"],
                name="conversation_temporary",
                condition=Q(temporary=True),
            ),
            models.Index(
                fields=["deleted_at"],
                name="conversation_deleted",
                condition=Q(deleted_at__isnull=False),
            ),
        ]
        constraints = [
            models.UniqueConstraint(fields=["owner", "client_id"], name="conversation_begun_once"),
        ]

    def __str__(self) -> str:
        # Not the title, which is text of a message: the admin names rows so for staff without the right
        # to read messages.
        return f"chat {self.pk}"

    def get_absolute_url(self) -> str:
        return reverse("chat:conversation", args=[self.id])

    @property
    def chosen_model(self) -> LanguageModel:
        """The model that answers its next message."""
        return self.model or self.assistant.model

    @property
    def chosen_model_id(self) -> int:
        """The key of `chosen_model`; reads at most the assistant."""
        return self.model_id or self.assistant.model_id

    @property
    def has_documents(self) -> bool:
        """Whether it is bound to documents, its project's among them; reads at most the project."""
        return self.has_own_documents or (self.project is not None and self.project.has_documents)

    @property
    def name(self) -> str:
        """The title as pages show it."""
        return self.title or _("New chat")
