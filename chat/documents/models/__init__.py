"""The tables of documents."""

from __future__ import annotations

from chat.documents.models.chunks import Chunk, DocumentIndex
from chat.documents.models.documents import Block, ConversationDocument, Document

__all__ = ["Block", "Chunk", "ConversationDocument", "Document", "DocumentIndex"]
