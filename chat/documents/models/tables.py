"""Tables made of documents, and results of queries over them."""

from __future__ import annotations

from typing import Any

from django.db import models
from django.utils.translation import gettext_lazy

from chat.documents.models.documents import Document
from chat.models import Conversation, new_id


class Dataset(models.Model):
    """The tables of a CSV or Excel document: a DuckDB file that queries read, and what pages and prompts show of it.

    `tables` has for each table {name, title, rows, columns, preview, notes}: `columns` as {name, type, unit, empty,
    distinct, min, max, mean, top}, `preview` the first rows, `notes` how the file was read, by code.
    """

    document = models.OneToOneField(Document, on_delete=models.CASCADE, related_name="dataset")
    file = models.CharField(
        max_length=64, help_text=gettext_lazy("Its name in the private storage.")
    )
    size = models.PositiveBigIntegerField(help_text=gettext_lazy("Bytes of the file."))
    tables = models.JSONField()
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        indexes = [models.Index(fields=["file"], name="dataset_file")]

    def __str__(self) -> str:
        return f"tables of {self.document_id}"

    @property
    def rows(self) -> int:
        return sum(table["rows"] for table in self.tables)

    def table(self, name: str) -> dict[str, Any] | None:
        """Return a table by its name."""
        return next((table for table in self.tables if table["name"] == name), None)


class TableResult(models.Model):
    """The whole result of a query of a reply as compressed CSV, for its download; the reply shows the first rows."""

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    conversation = models.ForeignKey(
        Conversation, on_delete=models.CASCADE, related_name="table_results"
    )
    call = models.CharField(
        max_length=100, help_text=gettext_lazy("The call of a tool that it is the result of.")
    )
    rows = models.PositiveIntegerField()
    content = models.BinaryField()
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["conversation", "call"], name="table_result_once_per_call"
            ),
        ]

    def __str__(self) -> str:
        return f"result {self.pk}"
