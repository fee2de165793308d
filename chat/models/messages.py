"""Messages, the nodes of a conversation's tree, and their parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from django.db import models
from django.db.models import Q
from django.utils.functional import cached_property
from django.utils.translation import gettext_lazy

from chat.models.base import new_id
from chat.models.conversations import Conversation


@dataclass(frozen=True, slots=True)
class Siblings:
    """The place of a message among the messages with its parent, by age: `position` of `count`, from 1."""

    position: int
    count: int
    previous: UUID | None
    next: UUID | None
    newest: UUID

    @classmethod
    def of(cls, id: UUID, ids: Sequence[UUID] | None) -> Siblings | None:
        """Return the place of a message among `ids`, oldest first; None for the only one."""
        if ids is None or len(ids) < 2 or id not in ids:
            return None
        at = ids.index(id)
        return cls(
            position=at + 1,
            count=len(ids),
            previous=ids[at - 1] if at else None,
            next=ids[at + 1] if at + 1 < len(ids) else None,
            newest=ids[-1],
        )


class Message(models.Model):
    """A message of the user or a reply; its text is filled in when the reply has ended."""

    class Role(models.TextChoices):
        USER = "user"
        ASSISTANT = "assistant"

    class Status(models.TextChoices):
        """State of a message; a message of the user is always done."""

        PENDING = "pending"
        DONE = "done"
        STOPPED = "stopped"
        FAILED = "failed"

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    conversation = models.ForeignKey(
        Conversation, on_delete=models.CASCADE, related_name="messages"
    )
    parent = models.ForeignKey(
        "self", null=True, blank=True, on_delete=models.CASCADE, related_name="children"
    )
    role = models.CharField(max_length=9, choices=Role)
    status = models.CharField(max_length=7, choices=Status, default=Status.DONE)
    text = models.TextField(blank=True)
    html = models.TextField(
        blank=True,
        help_text=gettext_lazy("The text as rendered and sanitised when it was finished."),
    )
    created_at = models.DateTimeField(auto_now_add=True)
    # A copy of some fields of its attachments, so that pages and prompts need no further query.
    attached = models.JSONField(
        null=True,
        blank=True,
        help_text=gettext_lazy(
            "The files of a message of the user, in order (Attachment.snapshot)."
        ),
    )

    # Set by code that shows the message: its siblings, and a newer sibling that failed to replace it.
    siblings: Siblings | None = None
    failed_sibling: Message | None = None
    is_compared: bool = False  # shown beside its siblings
    rating: str = ""  # by its reader: "good" or "bad"

    class Meta:
        ordering = ["id"]
        indexes = [
            models.Index(fields=["conversation"], name="message_root", condition=Q(parent=None)),
        ]
        constraints = [
            models.CheckConstraint(
                condition=Q(role__in=["user", "assistant"]), name="message_role_known"
            ),
            models.CheckConstraint(
                condition=Q(status__in=["pending", "done", "stopped", "failed"]),
                name="message_status_known",
            ),
            models.CheckConstraint(
                condition=Q(role="assistant") | Q(status="done"), name="message_of_user_is_done"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.role} {self.id}"

    @cached_property
    def ordered_parts(self) -> list[MessagePart]:
        """The parts, in order. Code that has already read them sets this, which saves a query."""
        return list(self.parts.all())

    @property
    def files(self) -> list[dict[str, Any]]:
        """The attachments of a message of the user; `attached` of a reply is what later turns remember of tools."""
        return list(self.attached or ()) if self.role == self.Role.USER else []

    @property
    def origin_model(self) -> str:
        """The name of the model that wrote an imported or copied reply; empty for others, and if it is unknown."""
        return str(self._origin.get("model", ""))

    @property
    def was_cut(self) -> bool:
        """Whether this is the copy of a reply that reached its length limit."""
        return self._origin.get("finish_reason") == "length"

    @property
    def _origin(self) -> dict[str, Any]:
        parts = (part for part in self.ordered_parts if part.kind == MessagePart.Kind.ORIGIN)
        return next((part.data for part in parts), {})


class MessagePart(models.Model):
    """Content of a reply besides its text, in order: reasoning, tool calls, and the origin of an imported one."""

    class Kind(models.TextChoices):
        REASONING = "reasoning"
        # A call that Parley made for the model: chat.runs.steps.part_of. `call` is its number in the run, `at` the
        # characters of the text before it.
        TOOL = "tool"
        # Additions of a call to the reply, with the number of the `call`: see docs/tools.md.
        CITATION = "citation"
        TABLE = "table"
        CHART = "chart"
        LINKS = "links"  # pages of the web
        NOTE = "note"  # about the user; `deleted` once it is
        TOOL_CALL = "tool_call"  # of a reply of the API: `id`, `name` and `arguments`
        # Of an imported reply: its `model` and the product, `source`; of a copied one: `model` and `finish_reason`.
        ORIGIN = "origin"

    OF_TOOLS = (Kind.TOOL, Kind.CITATION, Kind.TABLE, Kind.CHART, Kind.LINKS)
    FOR_OWNER = (*OF_TOOLS, Kind.NOTE)

    message = models.ForeignKey(Message, on_delete=models.CASCADE, related_name="parts")
    position = models.PositiveSmallIntegerField()
    kind = models.CharField(max_length=20, choices=Kind)
    data = models.JSONField()

    class Meta:
        ordering = ["position"]
        constraints = [
            models.UniqueConstraint(fields=["message", "position"], name="part_position_once"),
        ]

    def __str__(self) -> str:
        return f"{self.kind} of {self.message_id}"
