"""Documents of users, their content as blocks, and the conversations that are bound to them."""

from __future__ import annotations

from typing import Any, ClassVar

from django.conf import settings
from django.db import models
from django.db.models import Q
from django.urls import reverse
from django.utils.translation import gettext_lazy

from chat.models import Conversation, Project, new_id


class DocumentManager(models.Manager["Document"]):
    """The documents that are not deleted."""

    def get_queryset(self) -> models.QuerySet[Document]:
        return super().get_queryset().filter(deleted_at=None)


class Document(models.Model):
    """An uploaded document of a user: a chat, a text or a table.

    Its file is in the private storage, and is never changed. A job parses it in a sandbox and stores all of its
    blocks, or none. A deleted document can be restored until it is purged with its file and its rows.
    """

    class Format(models.TextChoices):
        WHATSAPP = "whatsapp", gettext_lazy("WhatsApp chat")
        TELEGRAM = "telegram", gettext_lazy("Telegram chat")
        TEXT = "text", gettext_lazy("Text")
        MARKDOWN = "markdown", gettext_lazy("Markdown")
        CSV = "csv", gettext_lazy("CSV table")
        XLSX = "xlsx", gettext_lazy("Excel workbook")
        PDF = "pdf", gettext_lazy("PDF")
        DOCX = "docx", gettext_lazy("Word document")

    class Kind(models.TextChoices):
        CHAT = "chat", gettext_lazy("Chat")
        TEXT = "text", gettext_lazy("Text")
        TABLE = "table", gettext_lazy("Table")

    class Status(models.TextChoices):
        UPLOADED = "uploaded", gettext_lazy("Uploaded")
        PARSING = "parsing", gettext_lazy("Reading")
        READY = "ready", gettext_lazy("Ready")
        FAILED = "failed", gettext_lazy("Failed")

    class IndexStatus(models.TextChoices):
        NONE = "none", gettext_lazy("Not indexed")
        QUEUED = "queued", gettext_lazy("Queued")
        INDEXING = "indexing", gettext_lazy("Indexing")
        READY = "ready", gettext_lazy("Ready")
        FAILED = "failed", gettext_lazy("Failed")

    KINDS: ClassVar[dict[str, str]] = {
        Format.WHATSAPP: Kind.CHAT,
        Format.TELEGRAM: Kind.CHAT,
        Format.CSV: Kind.TABLE,
        Format.XLSX: Kind.TABLE,
    }  # all others are texts
    ACTIVE = (Status.UPLOADED, Status.PARSING)
    has_texts = True  # for chat.access: staff need the permission to read conversations

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    owner = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="documents"
    )
    project = models.ForeignKey(
        Project,
        null=True,
        blank=True,
        on_delete=models.SET_NULL,
        related_name="documents",
        help_text=gettext_lazy("All conversations of the project are bound to the document."),
    )
    name = models.CharField(max_length=255)
    format = models.CharField(max_length=8, choices=Format)
    kind = models.CharField(max_length=5, choices=Kind)
    size = models.PositiveBigIntegerField(help_text=gettext_lazy("Bytes of the file."))
    sha256 = models.CharField(max_length=64)
    file = models.CharField(
        max_length=64, help_text=gettext_lazy("Its name in the private storage.")
    )
    options = models.JSONField(
        default=dict,
        blank=True,
        help_text=gettext_lazy(
            "Choices of the user for the parser, such as the chats of an export."
        ),
    )
    status = models.CharField(max_length=8, choices=Status, default=Status.UPLOADED)
    reason = models.CharField(
        max_length=40, blank=True, help_text=gettext_lazy("The code of a failure.")
    )
    percent = models.PositiveSmallIntegerField(default=0)
    attempt = models.PositiveSmallIntegerField(
        default=0, help_text=gettext_lazy("Of parsing, counted from 1 by its claim.")
    )
    beat_at = models.DateTimeField(
        auto_now_add=True, help_text=gettext_lazy("When its job was queued or last made progress.")
    )
    details = models.JSONField(
        default=dict,
        blank=True,
        help_text=gettext_lazy("Counts, and notes on what was left out or guessed."),
    )
    statistics = models.JSONField(null=True, blank=True)
    language = models.CharField(
        max_length=10, blank=True, help_text=gettext_lazy("Of its text; empty if it is not known.")
    )
    index_status = models.CharField(max_length=8, choices=IndexStatus, default=IndexStatus.NONE)
    created_at = models.DateTimeField(auto_now_add=True)
    parsed_at = models.DateTimeField(null=True, blank=True)
    deleted_at = models.DateTimeField(null=True, blank=True)

    objects: ClassVar[Any] = DocumentManager()
    all_objects: ClassVar[Any] = models.Manager()

    class Meta:
        ordering = ["-id"]
        indexes = [
            models.Index(
                fields=["owner", "-id"], name="document_shown", condition=Q(deleted_at=None)
            ),
            models.Index(
                fields=["beat_at"],
                name="document_active",
                condition=Q(status__in=["uploaded", "parsing"], deleted_at=None),
            ),
            models.Index(
                fields=["deleted_at"],
                name="document_deleted",
                condition=Q(deleted_at__isnull=False),
            ),
            models.Index(fields=["file"], name="document_file"),
        ]
        constraints = [
            models.UniqueConstraint(
                fields=["owner", "sha256"],
                condition=Q(deleted_at=None),
                name="document_once_per_owner",
            ),
        ]

    def __str__(self) -> str:
        return f"document {self.pk}"  # not the name, which is a user's text

    def get_absolute_url(self) -> str:
        return reverse("chat:document", args=[self.pk])

    @property
    def is_active(self) -> bool:
        """Whether it is yet to be parsed."""
        return self.status in self.ACTIVE


class Block(models.Model):
    """A part of a document in its order: a message of a chat, or a heading, paragraph or table of a text.

    Passages are ranges of positions, which begin at 0 and have no gaps.
    """

    class Kind(models.TextChoices):
        MESSAGE = "message", gettext_lazy("Message")
        SYSTEM = "system", gettext_lazy("System line")
        MEDIA = "media", gettext_lazy("Media")
        DELETED = "deleted", gettext_lazy("Deleted message")
        POLL = "poll", gettext_lazy("Poll")
        HEADING = "heading", gettext_lazy("Heading")
        PARAGRAPH = "paragraph", gettext_lazy("Paragraph")
        TABLE = "table", gettext_lazy("Table")

    document = models.ForeignKey(
        Document, on_delete=models.CASCADE, related_name="blocks", db_index=False
    )
    position = models.PositiveIntegerField()
    kind = models.CharField(max_length=9, choices=Kind)
    sender = models.CharField(max_length=200, blank=True)
    sent_at = models.DateTimeField(
        null=True,
        blank=True,
        help_text=gettext_lazy(
            "As the clock showed it where the chat was exported, stored as if it were UTC."
        ),
    )
    page = models.PositiveIntegerField(
        null=True, blank=True, help_text=gettext_lazy("Of a PDF, counted from 1.")
    )
    headings = models.JSONField(
        default=list,
        blank=True,
        help_text=gettext_lazy("The headings above it, from the outermost one to its own."),
    )
    text = models.TextField(blank=True)
    extra = models.JSONField(
        null=True,
        blank=True,
        help_text=gettext_lazy("What its format says besides: edited, forwarded, file, level."),
    )

    class Meta:
        ordering = ["document", "position"]
        constraints = [
            models.UniqueConstraint(fields=["document", "position"], name="block_in_order"),
        ]

    def __str__(self) -> str:
        return f"block {self.position} of {self.document_id}"


class ConversationDocument(models.Model):
    """The binding of a conversation to a document: its questions are answered from it.

    A conversation reads the documents of its project as well.
    """

    conversation = models.ForeignKey(
        Conversation, on_delete=models.CASCADE, related_name="document_links", db_index=False
    )
    document = models.ForeignKey(
        Document, on_delete=models.CASCADE, related_name="conversation_links"
    )
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["id"]
        constraints = [
            models.UniqueConstraint(
                fields=["conversation", "document"], name="document_once_per_conversation"
            ),
        ]

    def __str__(self) -> str:
        return f"document {self.document_id} of {self.conversation_id}"
