"""Reads the texts of the evaluation set: Markdown, and chats with a message on each line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

FOLDER = Path(__file__).parent / "documents"
MESSAGE = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d) ([^:]+): (.*)")


def blocks_of(path: Path) -> Iterator[Any]:
    """Yield the blocks of a text, with the fields of chat.documents.models.Block."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".chat":
        for position, line in enumerate(text.splitlines()):
            time, sender, words = MESSAGE.fullmatch(line).groups()
            sent_at = datetime.fromisoformat(time).replace(tzinfo=UTC)
            yield block(position, "message", words, sender=sender, sent_at=sent_at)
        return
    headings: list[str] = []
    for position, paragraph in enumerate(text.strip().split("\n\n")):
        level = len(paragraph) - len(paragraph.lstrip("#"))
        words = paragraph.lstrip("# ")
        if level:
            headings = [*headings[: level - 1], words]
        kind = "heading" if level else "paragraph"
        yield block(position, kind, words, headings=[*headings])


def block(position: int, kind: str, text: str, **fields: Any) -> Any:
    empty: dict[str, Any] = {"sender": "", "sent_at": None, "page": None, "headings": []}
    return SimpleNamespace(position=position, kind=kind, text=text, **(empty | fields))
