"""The uploaded files of a user in an export, as they are stored."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from uuid import UUID

from django.db.models import QuerySet

from chat.attachments import names
from chat.documents import storage
from chat.documents.models import Document as UploadedDocument
from chat.models import Attachment
from chatproject.lib import private_files
from chatproject.lib.personal_data import Document

if TYPE_CHECKING:
    from accounts.models import User

BATCH = 100
PART_BYTES = 262_144


def attachments(user: User) -> Iterator[Document]:
    """Yield the attachments, each with its name behind the end of its id."""
    for one in _batches(Attachment.objects.filter(owner=user)):
        if one.file and private_files.path(one.file).is_file():
            yield f"Files/{one.pk.hex[-8:]}-{names.clean(one.name)}", _parts(one.file)


def documents(user: User) -> Iterator[Document]:
    """Yield the documents in the same way, also deleted ones until they are purged."""
    for one in _batches(UploadedDocument.all_objects.filter(owner=user)):
        if storage.exists(one.file):
            yield f"Documents/{one.pk.hex[-8:]}-{names.clean(one.name)}", storage.parts(one.file)


def _batches(mine: QuerySet[Any]) -> Iterator[Any]:
    last = UUID(int=0)
    while batch := list(mine.order_by("pk").filter(pk__gt=last)[:BATCH]):
        last = batch[-1].pk
        yield from batch


def _parts(name: str) -> Iterator[bytes]:
    with private_files.path(name).open("rb") as file:
        while part := file.read(PART_BYTES):
            yield part
