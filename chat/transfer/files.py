"""The files of messages in exports, and from them again in imports."""

from __future__ import annotations

import base64
import binascii
import io
import json
import logging
from collections.abc import Sequence
from typing import Any
from uuid import UUID

from django.conf import settings

from accounts.models import User
from chat.attachments import content, images, names, uploads
from chat.errors import ChatError
from chat.models import Attachment, Message, new_id

logger = logging.getLogger(__name__)


def size_of(message: Message) -> int:
    """Return the bytes of the files of a message."""
    return sum(one["size"] for one in message.files)


def exported(messages: Sequence[Message]) -> dict[UUID, list[dict[str, Any]]]:
    """Return the files of messages as the JSON of an export has them, by the ids of the messages; one query at most.

    A text has its `text`, an image its `data` in base64; a deleted or lost file has neither.
    """
    ids = [id for message in messages for id in uploads.kept_ids(message.files)]
    rows = Attachment.objects.in_bulk(ids) if ids else {}
    return {
        message.pk: [_exported(one, rows) for one in message.files]
        for message in messages
        if message.attached
    }


def _exported(one: dict[str, Any], rows: dict[UUID, Attachment]) -> dict[str, Any]:
    kept = ("name", "kind", "size", "width", "height")
    fields: dict[str, Any] = {name: one[name] for name in kept if name in one}
    data = None if one.get("deleted") else content.read(one, rows)
    if data is None:
        return fields | {"deleted": True}
    fields["content_type"] = rows[UUID(one["id"])].content_type
    if one["kind"] == Attachment.Kind.TEXT:
        return fields | {"text": data.decode()}
    return fields | {"data": base64.b64encode(data).decode()}


def restored(
    user: User, described: Sequence[Any], most: int
) -> tuple[list[Attachment], list[dict[str, Any]]]:
    """Store up to `most` files of an imported message; return them, and all entries of `Message.attached`.

    They are checked as uploads are: the file of an import may come from anywhere. An image is no larger than
    exports have it, which bounds the work. A file that is refused, or that the import does not have, becomes an
    entry that is marked as deleted.
    """
    made: list[Attachment] = []
    entries: list[dict[str, Any]] = []
    for number, one in enumerate(described[: settings.ATTACHMENTS_PER_MESSAGE]):
        fields = one if isinstance(one, dict) else {}
        name = names.clean(str(fields.get("name", "")))
        data = _bytes(fields) if number < most else None
        try:
            if data is None:
                raise ChatError("file_missing")
            stored = uploads.add(
                user=user,
                name=name,
                size=len(data),
                file=io.BytesIO(data),
                longest_side=images.SIDE,
            )
        except ChatError as error:
            logger.info("a file of an import is left out: %s", error.code)
            kind = "image" if fields.get("kind") == "image" else "text"
            lost = {"id": str(new_id()), "kind": kind, "name": name, "size": 0, "deleted": True}
            entries.append(lost)
        else:
            made.append(stored)
            entries.append(stored.snapshot)
    return made, entries


def _bytes(fields: dict[str, Any]) -> bytes | None:
    text, data = fields.get("text"), fields.get("data")
    if isinstance(text, str):
        return text.encode(errors="replace")
    if not isinstance(data, str) or not data:
        return None
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        return None


def encoded(entries: list[dict[str, Any]] | None) -> str | None:
    """Return entries of `Message.attached` as JSON for plain SQL."""
    return json.dumps(entries) if entries else None
