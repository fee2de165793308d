"""The files of a user's export: the rows of each registered table as JSON, and the documents of the apps.

chat.transfer.archives writes them into the archive. Rows are read in batches, so that memory is bounded.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import msgspec

from chatproject.lib import personal_data
from chatproject.lib.personal_data import Document, PersonalTable

if TYPE_CHECKING:
    from accounts.models import User

BATCH = 500  # rows of one query and one part


def documents(user: User) -> Iterator[Document]:
    """Yield the files of a user's export: their names, and their content in parts."""
    for table in personal_data.tables():
        if table.document:
            yield f"{table.document}.json", _rows(table, user.pk)
    yield from personal_data.documents(user)


def _rows(table: PersonalTable, user_id: int) -> Iterator[bytes]:
    columns = _columns(table)
    rows = table.of(user_id).order_by("pk")
    last: Any = None
    yield b"["
    while True:
        batch = rows if last is None else rows.filter(pk__gt=last)
        found = list(batch.values("pk", *columns)[:BATCH])
        if not found:
            break
        for row in found:
            key = row.pop("pk")
            yield (b"\n" if last is None else b",\n") + msgspec.json.encode(row)
            last = key
    yield b"\n]\n"


def _columns(table: PersonalTable) -> list[str]:
    return [
        field.attname
        for field in table.kind._meta.concrete_fields
        if field.name not in table.omitted
    ]
