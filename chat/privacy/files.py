"""The uploaded files of a user in an export, as they are stored."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING
from uuid import UUID

from chat.attachments import names
from chat.models import Attachment
from chatproject.lib import private_files
from chatproject.lib.personal_data import Document

if TYPE_CHECKING:
    from accounts.models import User

BATCH = 100
PART_BYTES = 262_144


def documents(user: User) -> Iterator[Document]:
    """Yield the files, each with its name behind the end of its id."""
    last = UUID(int=0)
    rows = Attachment.objects.filter(owner=user).order_by("pk")
    while batch := list(rows.filter(pk__gt=last)[:BATCH]):
        last = batch[-1].pk
        for one in batch:
            if one.file and private_files.path(one.file).is_file():
                yield f"Files/{one.pk.hex[-8:]}-{names.clean(one.name)}", _parts(one.file)


def _parts(name: str) -> Iterator[bytes]:
    with private_files.path(name).open("rb") as file:
        while part := file.read(PART_BYTES):
            yield part
