"""The chunks of documents, which a search finds, and the state of each document's index."""

from __future__ import annotations

from django.contrib.postgres.indexes import GinIndex
from django.contrib.postgres.search import SearchVectorField
from django.db import models
from django.utils.translation import gettext_lazy

from chat.documents.models.documents import Document


class Chunk(models.Model):
    """A range of a document's blocks with its words, and with a vector where the database has pgvector.

    The column `embedding` is not one of Django's: chat.documents.retrieval.vectors adds it once the extension
    can be created. `embedded_by` is the key of the model that made the vector.
    """

    document = models.ForeignKey(
        Document, on_delete=models.CASCADE, related_name="chunks", db_index=False
    )
    number = models.PositiveIntegerField()
    first = models.PositiveIntegerField(help_text=gettext_lazy("The position of its first block."))
    last = models.PositiveIntegerField(help_text=gettext_lazy("The position of its last block."))
    start = models.PositiveIntegerField(
        null=True,
        blank=True,
        help_text=gettext_lazy("Of a part of one long block: its first character."),
    )
    end = models.PositiveIntegerField(
        null=True, blank=True, help_text=gettext_lazy("The character after its last one.")
    )
    label = models.CharField(
        max_length=200, blank=True, help_text=gettext_lazy("Its senders, or its headings.")
    )
    page = models.PositiveIntegerField(null=True, blank=True)
    sent_at = models.DateTimeField(null=True, blank=True)
    text = models.TextField()
    vector = SearchVectorField()
    embedded_by = models.BigIntegerField(null=True, blank=True)

    class Meta:
        ordering = ["document", "number"]
        indexes = [GinIndex(fields=["vector"], name="document_chunk_words", fastupdate=False)]
        constraints = [
            models.UniqueConstraint(fields=["document", "number"], name="chunk_in_order"),
        ]

    def __str__(self) -> str:
        return f"chunk {self.number} of {self.document_id}"


class DocumentIndex(models.Model):
    """The state of a document's index: what its chunks were made with, and the job that makes them.

    A job that is lost is found by `beat_at`; one that fails MOST_ATTEMPTS times in a row without progress has
    failed (chat.documents.retrieval.indexing).
    """

    document = models.OneToOneField(
        Document, on_delete=models.CASCADE, primary_key=True, related_name="index"
    )
    version = models.PositiveSmallIntegerField(default=0, help_text=gettext_lazy("Of the chunker."))
    chunk_tokens = models.PositiveIntegerField(
        default=0, help_text=gettext_lazy("The greatest size of a chunk.")
    )
    chunks = models.PositiveIntegerField(default=0)
    embedded = models.PositiveIntegerField(
        default=0, help_text=gettext_lazy("Chunks that have a vector.")
    )
    model = models.BigIntegerField(
        null=True,
        blank=True,
        help_text=gettext_lazy("The key of the model whose vectors all chunks have."),
    )
    attempt = models.PositiveSmallIntegerField(
        default=0, help_text=gettext_lazy("Since the last progress.")
    )
    token = models.UUIDField(
        null=True, blank=True, help_text=gettext_lazy("Of the job that works on it.")
    )
    beat_at = models.DateTimeField(
        auto_now_add=True, help_text=gettext_lazy("When its job was queued or last made progress.")
    )
    reason = models.CharField(
        max_length=40, blank=True, help_text=gettext_lazy("The code of a failure.")
    )

    class Meta:
        ordering = ["document"]
        verbose_name_plural = gettext_lazy("document indexes")

    def __str__(self) -> str:
        return f"index of {self.document_id}"
