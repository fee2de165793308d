"""Attachments in prompts: their tokens, and their content as models receive it.

Tokens follow from `Message.attached` alone, so that a quote reads no file. The worker reads the contents when it
builds the prompt of a claimed run, in a thread.
"""

from __future__ import annotations

import base64
import json
import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from chat.llm.tokens import count_tokens, token_upper_bound, typical_tokens
from chat.models import Attachment, LanguageModel
from chatproject.lib import private_files

logger = logging.getLogger(__name__)

IMAGE = Attachment.Kind.IMAGE

# Providers count an image by its area, in tiles or patches, and a small one as a tile.
AREA = 1_024 * 1_024
SMALLEST_AREA = 512 * 512
# Of a model without `image_tokens`, as Claude and Qwen count; gpt-4o counts half.
TOKENS_OF_AREA = 1_400
BOUND_OF_IMAGE = 2  # times the estimate

# Of one prompt, which the worker holds in memory while the reply begins. The newest images stay.
MAX_IMAGES = 20
MAX_IMAGE_BYTES = 16_000_000
MARKUP_TOKENS = 32  # around a text

BLIND = "[The image {name} is left out: this model cannot see images.]"
TOO_MANY = "[The image {name} is left out: there are too many images.]"
DELETED = "[The file {name} was deleted.]"


class Room:
    """The images that a prompt may still have; the newest messages take theirs first."""

    def __init__(self) -> None:
        self.images, self.bytes = MAX_IMAGES, MAX_IMAGE_BYTES

    def take(self, size: int) -> bool:
        """Return whether an image of `size` bytes still fits, and take its place."""
        if self.images < 1 or self.bytes < size:
            return False
        self.images -= 1
        self.bytes -= size
        return True


@dataclass(slots=True)
class Files:
    """The attachments of one message in a prompt for one model, with their tokens.

    Tokens are estimated as in chat.llm.tokens: `counted` for the window, `typical` for money, `bound` for the
    hold. `notes` stand for files that are left out.
    """

    notes: list[str] = field(default_factory=list)
    texts: list[dict[str, Any]] = field(default_factory=list)
    images: list[dict[str, Any]] = field(default_factory=list)
    counted: int = 0
    typical: int = 0
    bound: int = 0

    @classmethod
    def of(cls, model: LanguageModel, attached: Iterable[dict[str, Any]], room: Room) -> Files:
        """Sort the attachments of a message, which take their places from `room`."""
        found = cls()
        for one in attached:
            if one.get("deleted"):
                found._add_note(DELETED, one)
            elif one["kind"] != IMAGE:
                found.texts.append(one)
                around = 2 * len(one["name"].encode()) + MARKUP_TOKENS
                found._count(
                    one["counted"] + around, one["tokens"] + around // 4, one["bound"] + around
                )
            elif not model.vision:
                found._add_note(BLIND, one)
            elif not room.take(one["size"]):
                found._add_note(TOO_MANY, one)
            else:
                found.images.append(one)
                area = max(SMALLEST_AREA, one["width"] * one["height"]) / AREA
                tokens = math.ceil(area * (model.image_tokens or TOKENS_OF_AREA))
                found._count(tokens, tokens, BOUND_OF_IMAGE * tokens)
        return found

    def _add_note(self, note: str, one: dict[str, Any]) -> None:
        text = note.format(name=quoted(one["name"]))
        self.notes.append(text)
        self._count(count_tokens(text), typical_tokens(text), token_upper_bound(text))

    def _count(self, counted: int, typical: int, bound: int) -> None:
        self.counted += counted
        self.typical += typical
        self.bound += bound

    @property
    def ids(self) -> list[UUID]:
        return [UUID(one["id"]) for one in (*self.texts, *self.images)]

    def content(self, text: str, rows: dict[UUID, Attachment]) -> str | list[dict[str, Any]]:
        """Return the content of a message: text, or parts where it has images.

        `rows` are the attachments of `ids`; one that is missing is noted as deleted.
        """
        blocks, parts = list(self.notes), []
        for one in self.texts:
            content = read(one, rows)
            if content is None:
                blocks.append(DELETED.format(name=quoted(one["name"])))
            else:
                blocks.append(delimited(one["name"], content.decode()))
        for one in self.images:
            content = read(one, rows)
            if content is None:
                blocks.append(DELETED.format(name=quoted(one["name"])))
            else:
                kind = rows[UUID(one["id"])].content_type
                url = f"data:{kind};base64,{base64.b64encode(content).decode()}"
                parts.append({"type": "image_url", "image_url": {"url": url}})
        whole = "\n\n".join([*blocks, text] if text else blocks)
        if not parts:
            return whole
        return [*parts, {"type": "text", "text": whole}] if whole else parts


def rows_of(files: Sequence[Files]) -> dict[UUID, Attachment]:
    """Read the rows of the attachments of a prompt, by one query; none without attachments."""
    ids = [id for one in files for id in one.ids]
    return Attachment.objects.only("file", "content_type").in_bulk(ids) if ids else {}


def read(one: dict[str, Any], rows: dict[UUID, Attachment]) -> bytes | None:
    """Return the content of an attachment by its entry in `Message.attached`; None if it is not stored."""
    row = rows.get(UUID(one["id"]))
    if row is None:
        return None
    try:
        return private_files.path(row.file).read_bytes()
    except FileNotFoundError:
        logger.warning("the file of attachment %s is missing: is PRIVATE_ROOT shared?", row.pk)
        return None


def delimited(name: str, text: str) -> str:
    """Return a text between marks that it does not have itself, for a model."""
    mark, number = "file", 1
    while f"</{mark}>" in text:
        number += 1
        mark = f"file-{number}"
    return f"<{mark} name={quoted(name)}>\n{text}\n</{mark}>"


def quoted(name: str) -> str:
    return json.dumps(name, ensure_ascii=False)
