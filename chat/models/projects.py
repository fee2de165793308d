"""Projects: folders of conversations with instructions, and a model and an assistant for new ones."""

from __future__ import annotations

from typing import Any, ClassVar

from django.conf import settings
from django.db import models
from django.db.models import Q
from django.db.models.functions import Lower
from django.urls import reverse
from django.utils.translation import gettext_lazy

from chat.models.base import new_id
from chat.models.catalogue import Assistant, LanguageModel


class ProjectQuerySet(models.QuerySet["Project"]):
    def not_deleted(self) -> ProjectQuerySet:
        """Exclude deleted projects."""
        return self.filter(deleted_at=None)


class Project(models.Model):
    """A folder of one user's conversations. A deleted one has no conversations, and is purged later."""

    NAME_CHARACTERS = 60
    INSTRUCTIONS_CHARACTERS = 8_000

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    owner = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="projects"
    )
    name = models.CharField(max_length=NAME_CHARACTERS)
    instructions = models.TextField(
        blank=True, help_text=gettext_lazy("Sent to the model after the assistant's system prompt.")
    )
    # Of new conversations. Without indexes, as only the deletion of a model or assistant looks for them.
    model = models.ForeignKey(
        LanguageModel,
        null=True,
        blank=True,
        on_delete=models.SET_NULL,
        related_name="+",
        db_index=False,
    )
    assistant = models.ForeignKey(
        Assistant,
        null=True,
        blank=True,
        on_delete=models.SET_NULL,
        related_name="+",
        db_index=False,
    )
    # Whether documents may belong to it: kept by chat.documents.binding, as Conversation.has_own_documents.
    has_documents = models.BooleanField(default=False, db_default=False, editable=False)
    created_at = models.DateTimeField(auto_now_add=True)
    deleted_at = models.DateTimeField(null=True, blank=True)

    objects: ClassVar[Any] = ProjectQuerySet.as_manager()

    class Meta:
        ordering = [Lower("name"), "id"]
        indexes = [
            models.Index(
                fields=["deleted_at"],
                name="project_deleted",
                condition=Q(deleted_at__isnull=False),
            ),
        ]

    def __str__(self) -> str:
        return f"project {self.pk}"  # not the name, as with a conversation

    def get_absolute_url(self) -> str:
        return reverse("chat:project", args=[self.id])
