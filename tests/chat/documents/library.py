"""Documents of tests, made of blocks without a file."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta
from typing import Any

from accounts.models import User
from billing.models import ModelPrice
from chat.documents.models import Block, Document
from chat.models import LanguageModel

MODEL = "embeddings-of-documents"
START = datetime(2024, 3, 12, 9, tzinfo=UTC)

_numbers = itertools.count()


def make_text(owner: User, *paragraphs: str, name: str = "notes.md", **fields: Any) -> Document:
    """Make a text; a paragraph that begins with # is a heading."""
    document = _make(owner, name, "text", fields)
    heading: list[str] = []
    rows = []
    for position, words in enumerate(paragraphs):
        kind = "heading" if words.startswith("# ") else "paragraph"
        heading = [words[2:]] if kind == "heading" else heading
        rows.append(
            Block(
                document=document, position=position, kind=kind, headings=[*heading],
                text=words.removeprefix("# "),
            )
        )  # fmt: skip
    Block.objects.bulk_create(rows)
    return document


def make_chat(
    owner: User, *messages: tuple[int, str, str], name: str = "chat.txt", **fields: Any
) -> Document:
    """Make a chat of messages: minutes after its beginning, sender, text."""
    document = _make(owner, name, "chat", fields)
    Block.objects.bulk_create(
        Block(
            document=document, position=position, kind="message", sender=sender, text=text,
            sent_at=START + timedelta(minutes=minutes),
        )
        for position, (minutes, sender, text) in enumerate(messages)
    )  # fmt: skip
    return document


def _make(owner: User, name: str, kind: str, fields: dict[str, Any]) -> Document:
    values = {"format": "text", "status": "ready", "size": 1, "file": f"none-{next(_numbers)}"}
    sha256 = f"{next(_numbers):064}"
    made: Document = Document.objects.create(
        owner=owner, name=name, kind=kind, sha256=sha256, **(values | fields)
    )
    return made


def add_model(**fields: Any) -> LanguageModel:
    """Add the model for documents; the fake provider's vectors have 8 numbers."""
    values: dict[str, Any] = {
        "dimensions": 8,
        "context_tokens": 512,
        "max_inputs": 4,
        "documents": True,
    }
    values |= {"query_prefix": "query: ", "passage_prefix": "passage: "}
    name = fields.pop("name", MODEL)
    if not ModelPrice.objects.filter(model=name).exists():
        ModelPrice.objects.create(model=name, in_per_m=7_000_000, cached_in_per_m=0, out_per_m=0)
    return LanguageModel.objects.create(
        name=name, provider_model=name, kind="embedding", **(values | fields)
    )
