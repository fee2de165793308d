"""Entry points of the jobs of documents.

Redis stores their paths: a renamed function must keep its old name for one release.
"""

from __future__ import annotations

from uuid import UUID

from chat.documents import links, reading


def read_document(document_id: str, attempt: int) -> None:
    """Read an uploaded document, unless another job has claimed this attempt."""
    reading.run(UUID(document_id), attempt)


def draw_card(link_id: str) -> None:
    """Draw the card of a public link to statistics, unless it is drawn."""
    links.draw_card(UUID(link_id))
