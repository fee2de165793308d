"""Export of all chats of a user: the job that writes a zip archive, and the clock's care for it.

The archive has two documents of each chat, in the folders Markdown and JSON, whose words docs/export.md
describes. They are written in parts, so the worker needs memory for one part, and about a kilobyte for each chat
(the archive's own list of files).
"""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import TYPE_CHECKING
from uuid import UUID

from django.conf import settings
from django.core.mail import send_mail
from django.db import IntegrityError
from django.db.models import QuerySet
from django.template.loader import render_to_string
from django.urls import reverse
from django.utils import timezone, translation
from django.utils.translation import gettext as _

from accounts.privacy import export as privacy_export
from chat.errors import ChatError
from chat.models import ChatExport, Conversation
from chat.models.transfers import EXPORT_KEPT
from chat.transfer import documents, tracking
from chat.transfer.tracking import Progress, Superseded
from chatproject.lib import private_files
from chatproject.lib.mail import outbox

if TYPE_CHECKING:
    from accounts.models import User

logger = logging.getLogger(__name__)

CHATS = 100  # of one query
PART_BYTES = 262_144  # of one part of a download
MAILED_AFTER = timedelta(minutes=1)  # until then its page is probably still open
Document = Callable[[int], documents.Part]


def start(user: User, *, everything: bool = False) -> ChatExport:
    """Enqueue an export of all chats, or of all data; an earlier archive of the same kind is removed.

    Raises ChatError `run_active` while another export of the user goes on, and `not_found` without a chat.
    """
    if not everything and not _chats(user.pk).exists():
        raise ChatError("not_found", _("You have no chats yet. There is nothing to export."))
    try:
        made = ChatExport.objects.create(
            owner=user,
            everything=everything,
            language=translation.get_language() or "",
            beat_at=timezone.now(),
        )
    except IntegrityError as error:
        raise ChatError(
            "run_active", _("Another export is not finished. Wait for its end, or stop it.")
        ) from error
    _remove(ChatExport.objects.filter(owner=user, everything=everything).exclude(pk=made.pk))
    tracking.enqueue(made)
    return made


def newest(user: User, *, everything: bool = False) -> ChatExport | None:
    """Return the user's last export of all chats, or of all data."""
    return ChatExport.objects.filter(owner=user, everything=everything).first()


def _chats(owner_id: int, *, everything: bool = False) -> QuerySet[Conversation]:
    """Return the chats of an export; one of all data also has deleted and temporary chats that are still stored."""
    if everything:
        return Conversation.objects.filter(owner=owner_id)
    return Conversation.objects.not_deleted().filter(owner=owner_id, temporary=False)


def run(export_id: UUID, attempt: int) -> None:
    """Write the archive, unless another job has claimed this attempt."""
    one = tracking.claim(ChatExport, export_id, attempt)
    if one is None:
        return
    progress = Progress(one)
    name = private_files.new_name()
    try:
        private_files.remove(one.file)  # of an attempt that was lost
        progress.change(file=name)
        try:
            with translation.override(one.language or None):
                _write(one, name, progress)
        except OSError:
            logger.exception("%s could not be written to PRIVATE_ROOT", one)
            error = _("The archive could not be stored. Try again later.")
            progress.end(error, file="")
            return
        one.size = private_files.path(name).stat().st_size
        progress.end("", size=one.size, chats=one.chats)
    except Superseded:
        private_files.remove(name)
        logger.info("%s was stopped, or left to another attempt", one)
        return
    if outbox.is_configured() and timezone.now() - one.created_at > MAILED_AFTER:
        with translation.override(one.language or None):
            _mail(one)


def _write(one: ChatExport, name: str, progress: Progress) -> None:
    total = _chats(one.owner_id, everything=one.everything).count()
    with (
        private_files.writing(name) as file,
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        for name, parts in privacy_export.documents(one.owner) if one.everything else ():
            with archive.open(_member(name, timezone.now()), "w", force_zip64=True) as member:
                for part in parts:
                    member.write(part)
                    progress.beat()
        for chat in _each(one):
            _write_document(archive, chat, "Markdown", "md", documents.markdown(chat), progress)
            _write_document(archive, chat, "JSON", "json", documents.json(chat), progress)
            one.chats += 1
            progress.reach(min(99, one.chats * 100 // max(1, total)))


def _each(one: ChatExport) -> Iterator[Conversation]:
    """Yield the chats, oldest first, with a few in memory at a time."""
    after = UUID(int=0)
    chats = _chats(one.owner_id, everything=one.everything).select_related("assistant", "project")
    while found := list(chats.filter(pk__gt=after).order_by("pk")[:CHATS]):
        yield from found
        after = found[-1].pk


def _write_document(
    archive: zipfile.ZipFile,
    chat: Conversation,
    folder: str,
    ending: str,
    make: Document,
    progress: Progress,
) -> None:
    # The id tells apart two chats of one name and day.
    ending = f"{chat.pk.hex[-8:]}.{ending}"
    name = f"{folder}/{documents.file_name(chat.name, chat.updated_at, ending)}"
    at: int | None = 0
    with archive.open(_member(name, chat.updated_at), "w") as file:
        while at is not None:
            text, at = make(at)
            file.write(text.encode())
            progress.beat()


def _member(name: str, moment: datetime) -> zipfile.ZipInfo:
    member = zipfile.ZipInfo(name, timezone.localtime(moment).timetuple()[:6])
    member.compress_type = zipfile.ZIP_DEFLATED
    return member


def _mail(one: ChatExport) -> None:
    page = reverse("chat:data" if one.everything else "chat:export_all")
    context = {
        "export": one,
        "site_name": settings.SITE_NAME,
        "link": f"{settings.SITE_URL}{page}" if settings.SITE_URL else "",
        "hours": int(EXPORT_KEPT.total_seconds() // 3600),
    }
    words = (
        _("%(site)s: your data are ready to download")
        if one.everything
        else _("%(site)s: your chats are ready to download")
    )
    subject = words % {"site": settings.SITE_NAME}
    body = render_to_string("chat/email/export_ready.txt", context)
    send_mail(subject, body, None, [one.owner.email])


def read_part(name: str, at: int) -> tuple[bytes, int | None]:
    """Return the bytes of an archive from a position on, and where to go on."""
    with private_files.path(name).open("rb") as file:
        file.seek(at)
        data = file.read(PART_BYTES)
    return data, at + len(data) if len(data) == PART_BYTES else None


# --- The clock --------------------------------------------------------------------------------


def resume(now: datetime) -> None:
    """Enqueue lost exports again, remove archives after EXPORT_KEPT, and old rows.

    Raises redis.RedisError while the queue is unreachable.
    """
    _remove(ChatExport.objects.filter(ended_at__lt=now - EXPORT_KEPT))
    tracking.resume(ChatExport, now, _("The export was interrupted. Start it again."))


def _remove(exports: QuerySet[ChatExport]) -> None:
    """Remove the archives of ended exports."""
    for one in exports.exclude(file="").exclude(status__in=ChatExport.ACTIVE):
        private_files.remove(one.file)
        ChatExport.objects.filter(pk=one.pk).update(file="")
