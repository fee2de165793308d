"""Changes of documents by their owner: a new name, deletion and its undo; and the purge of deleted ones."""

from __future__ import annotations

import logging
import time
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import UUID

from django.conf import settings
from django.db import IntegrityError, transaction
from django.db.models import QuerySet
from django.utils import timezone
from django.utils.translation import gettext as _

from chat import access
from chat.attachments import names
from chat.documents import binding, links, storage, tracking
from chat.documents.datasets import store as datasets
from chat.documents.models import ConversationDocument, Dataset, Document
from chat.errors import ChatError
from chatproject.lib import private_files
from chatproject.lib.batches import SetAside

if TYPE_CHECKING:
    from accounts.models import User

logger = logging.getLogger(__name__)

NAME_CHARACTERS = 120
SECONDS = 2.0  # time limit of one turn of the purge, as the clock has other work
ROWS = 100
FOLDERS = 256


def rename(*, user: User, document_id: UUID, name: str) -> Document:
    """Give a document another name. Raises ChatError `not_found`, `empty_text`."""
    cleaned = names.clean(name[:NAME_CHARACTERS]) if name.strip() else ""
    if not cleaned:
        raise ChatError("empty_text", _("The name is empty. Write one first."))
    document = access.owned(user, Document, document_id)
    document.name = cleaned
    Document.objects.filter(pk=document.pk).update(name=cleaned)
    tracking.announce(document)
    return document


def choose_chat(*, user: User, document_id: UUID, chat: str) -> Document:
    """Read one chat of an export that has several. Raises ChatError `not_found`."""
    document = access.owned(user, Document, document_id)
    offered = {str(one.get("id")) for one in document.details.get("chats", [])}
    if document.reason != "choose_chat" or chat not in offered:
        raise ChatError("not_found", _("This chat is not in the export. Choose one of the list."))
    document.options["chat"] = chat
    if not tracking.retry(document):
        raise ChatError("not_found", _("The document is being read already."))
    return document


def delete(*, user: User, document_id: UUID) -> tuple[Document, datetime]:
    """Delete a document, which can be undone until it is purged; return it and the time that the undo needs.

    Its public links end for good.
    """
    with transaction.atomic():
        return _delete(access.owned(user, Document, document_id, lock=True))


def delete_by_staff(document_id: UUID) -> None:
    """Delete a document of any user, as its owner would. Raises ChatError `not_found`."""
    with transaction.atomic():
        found = Document.objects.select_for_update(no_key=True).filter(pk=document_id).first()
        if found is None:
            raise ChatError("not_found")
        _delete(found)


def _delete(document: Document) -> tuple[Document, datetime]:
    at = document.deleted_at = timezone.now()
    Document.objects.filter(pk=document.pk).update(deleted_at=at)
    links.end_of(document)
    _mark(document)
    transaction.on_commit(partial(tracking.announce, document))
    return document, at


def undo_delete(*, user: User, at: datetime) -> int:
    """Restore the documents that a user deleted at a moment; return how many.

    Raises ChatError `not_allowed` when the same file was uploaded again.
    """
    deleted = list(Document.all_objects.filter(owner=user, deleted_at=at))
    for document in deleted:
        try:
            with transaction.atomic():
                restored = Document.all_objects.filter(pk=document.pk, deleted_at=at)
                if not restored.update(deleted_at=None, beat_at=timezone.now()):
                    continue
                document.deleted_at = None
                _mark(document)
        except IntegrityError as error:
            raise ChatError(
                "not_allowed", _("The same file was uploaded again. Nothing was restored.")
            ) from error
        tracking.announce(document)
    return len(deleted)


def _mark(document: Document) -> None:
    """Keep the marks of the conversations and the project of a document."""
    links = ConversationDocument.objects.filter(document=document)
    binding.refresh(links.values_list("conversation", flat=True))
    if document.project is not None:
        binding.mark_project(document.project)


# --- The clock ----------------------------------------------------------------------------------


def purge(document: Document) -> None:
    """Delete a document for good: its file, then its rows. Raises OSError, and keeps the rows then."""
    storage.remove(document.file)
    document.delete()


class Purge:
    """Purges documents that were deleted long enough ago, and removes files without a row."""

    def __init__(self) -> None:
        self._set_aside = SetAside()
        self._folder = 0

    def run(self, now: datetime) -> int:
        """Purge deleted documents, and look at the next folder of files; return how many were removed."""
        deadline = time.monotonic() + SECONDS
        before = now - timedelta(days=settings.DELETED_CHAT_DAYS)
        deleted = Document.all_objects.filter(deleted_at__lte=before).order_by("deleted_at")
        removed = 0
        for document in deleted[: ROWS + self._set_aside.count]:
            if not self._set_aside.is_due(document.pk, now):
                continue
            with self._set_aside.apart(document.pk, f"the purge of {document}", now):
                purge(document)
                removed += 1
            if time.monotonic() > deadline:
                break
        self._folder = (self._folder + 1) % FOLDERS
        for folder, rows in (
            (storage.FOLDER, Document.all_objects.all()),
            (datasets.FOLDER, Dataset.objects.all()),
        ):
            removed += _sweep_files(f"{folder}/{self._folder:02x}", rows)
        if removed:
            logger.info("%d deleted documents and files without a document were removed", removed)
        return removed


def _sweep_files(folder: str, rows: QuerySet[Any]) -> int:
    """Remove the old local files of a folder that none of the rows names: their storing or purge was cut off."""
    found = private_files.old_names(folder)
    removed = 0
    for at in range(0, len(found), ROWS):
        some = found[at : at + ROWS]
        known = set(rows.filter(file__in=some).values_list("file", flat=True))
        for name in set(some) - known:
            private_files.remove(name)
            removed += 1
    return removed
