"""Removes attachments that no message has any longer, and files that have no row."""

from __future__ import annotations

import logging
from datetime import datetime
from typing import Any

from django.db import transaction
from django.db.models import Q
from django.db.models.signals import post_delete
from django.dispatch import receiver

from chat.attachments.uploads import FOLDER
from chat.models import Attachment, MessageAttachment
from chatproject.lib import private_files

logger = logging.getLogger(__name__)

ROWS = 100  # of one transaction
TURNS = 10  # of one call
FOLDERS = 256


@receiver(post_delete, sender=Attachment, dispatch_uid="chat.attachments.sweep")
def remove_files(instance: Attachment, **_signal: Any) -> None:
    """Remove the files of a deleted attachment after the COMMIT."""
    files = [name for name in (instance.file, instance.thumbnail) if name]

    def remove() -> None:
        for name in files:
            try:
                private_files.remove(name)
            except OSError:  # `Sweep` tries again
                logger.warning(
                    "the file %s of an attachment is not removed yet", name, exc_info=True
                )

    transaction.on_commit(remove)


class Sweep:
    """Sweeps expired rows, and at each call the next one of the folders of files."""

    def __init__(self) -> None:
        self._folder = 0

    def run(self, now: datetime) -> int:
        """Remove expired attachments and files without a row; return the number of both."""
        removed = 0
        for _turn in range(TURNS):
            seen, deleted = _sweep_rows(now)
            removed += deleted
            if seen < ROWS:
                break
        self._folder = (self._folder + 1) % FOLDERS
        removed += _sweep_files(f"{FOLDER}/{self._folder:02x}")
        if removed:
            logger.info("%d attachments and files without a message were removed", removed)
        return removed


def _sweep_rows(now: datetime) -> tuple[int, int]:
    with transaction.atomic():
        # Locked first: a link that is deleted from now on sets the time after this transaction, and
        # one that was deleted before is not seen by the second statement.
        expired = Attachment.objects.select_for_update(skip_locked=True).filter(expires_at__lte=now)
        found = list(expired.values_list("pk", flat=True)[:ROWS])
        links = MessageAttachment.objects.filter(attachment__in=found)
        linked = set(links.values_list("attachment", flat=True))
        Attachment.objects.filter(pk__in=linked).update(expires_at=None)
        Attachment.objects.filter(pk__in=set(found) - linked).delete()
    return len(found), len(found) - len(linked)


def _sweep_files(folder: str) -> int:
    """Remove the old files of a folder that no row names: their upload or their deletion was cut off."""
    names = private_files.old_names(folder)
    removed = 0
    for at in range(0, len(names), ROWS):
        some = names[at : at + ROWS]
        rows = Attachment.objects.filter(Q(file__in=some) | Q(thumbnail__in=some))
        known = {name for row in rows.values_list("file", "thumbnail") for name in row}
        for name in set(some) - known:
            private_files.remove(name)
            removed += 1
    return removed
