"""The tables of documents."""

from __future__ import annotations

from chat.documents.models.chunks import Chunk, DocumentIndex
from chat.documents.models.documents import Block, ConversationDocument, Document
from chat.documents.models.links import StatisticsLink
from chat.documents.models.tables import Dataset, TableResult

__all__ = [
    "Block",
    "Chunk",
    "ConversationDocument",
    "Dataset",
    "Document",
    "DocumentIndex",
    "StatisticsLink",
    "TableResult",
]
