"""Uploads of attachments: checked, stored, linked to messages and removed.

A file is stored before its row, and removed after the row's deletion is committed: a row always has its
file. chat.attachments.sweep removes files whose row was never stored, and rows that no message has.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import IO, TYPE_CHECKING, Any
from uuid import UUID

from django.conf import settings
from django.contrib.auth import get_user_model
from django.db import transaction
from django.db.models import Sum
from django.utils import timezone
from django.utils.translation import gettext as _

from billing.metering import plan_limits
from chat.attachments import images, names, texts
from chat.errors import ChatError
from chat.models import Attachment, LanguageModel
from chatproject.lib import languages, private_files

if TYPE_CHECKING:
    from accounts.models import User

logger = logging.getLogger(__name__)

FOLDER = "attachments"  # below PRIVATE_ROOT
HEAD = 16  # bytes that tell an image from a text
UNSENT_KEPT = timedelta(days=1)

# Functions of apps above that return the bytes of further files of a user, which share the limit of the plan.
counters: list[Callable[[User], int]] = []
QUEUED_KEPT = timedelta(days=30)


def add(
    *,
    user: User,
    name: str,
    size: int,
    file: IO[bytes],
    longest_side: int = images.MAX_SIDE,
) -> Attachment:
    """Check and store an upload of `size` bytes, for a message to come.

    Images are encoded anew, unless they have a longer side; texts become UTF-8; the type follows from the
    content alone. Raises ChatError:
    `file_too_large`, `bad_file`, `storage_full`, `busy`, `unavailable`.
    """
    if size > settings.ATTACHMENT_MAX_BYTES:
        raise ChatError(
            "file_too_large",
            _("The file is larger than %(most)s. Attach a smaller one.")
            % {"most": languages.size(settings.ATTACHMENT_MAX_BYTES)},
        )
    if size == 0:
        raise ChatError("bad_file", _("The file is empty. Attach another one."))
    head = file.read(HEAD)
    file.seek(0)
    if images.is_image(head):
        image = images.encode(file, longest_side=longest_side)
        contents = [image.data, image.thumbnail]
        made = Attachment(
            kind=Attachment.Kind.IMAGE,
            content_type=image.content_type,
            width=image.width,
            height=image.height,
        )
    elif images.is_other_image(head):
        raise texts.not_text()
    elif size > 4 * texts.MAX_BYTES + HEAD:  # UTF-32
        raise texts.too_long()
    else:
        text = texts.read(file.read())
        contents = [text.text.encode()]
        made = Attachment(
            kind=Attachment.Kind.TEXT,
            content_type="text/plain",
            tokens=text.tokens,
            counted=text.counted,
            bound=text.bound,
        )
    made.owner, made.name = user, names.clean(name)
    made.size = sum(map(len, contents))
    made.sha256 = hashlib.sha256(contents[0]).hexdigest()
    made.expires_at = timezone.now() + UNSENT_KEPT
    _store(made, contents)
    return made


def copy(user: User, old: Attachment) -> Attachment:
    """Store a copy of an attachment as the user's own, counted like an upload.

    Raises ChatError `file_missing`, `storage_full`, `unavailable`.
    """
    try:
        files = [private_files.path(one).read_bytes() for one in (old.file, old.thumbnail) if one]
    except FileNotFoundError as error:
        raise ChatError("file_missing") from error
    names = ("kind", "name", "content_type", "size", "sha256", "width", "height")
    counts = ("tokens", "counted", "bound")
    made = Attachment(owner=user, **{name: getattr(old, name) for name in (*names, *counts)})
    _store(made, files)
    return made


def _store(made: Attachment, contents: Sequence[bytes]) -> None:
    stored: list[str] = []
    try:
        stored += [private_files.store([content], FOLDER) for content in contents]
        made.file, made.thumbnail = (*stored, "")[:2]
        with transaction.atomic():
            # Uploads of one user in turn, or two at once could exceed the limit.
            get_user_model().objects.select_for_update(no_key=True).get(pk=made.owner_id)
            most = plan_limits.upload_bytes(made.owner.plan_id)
            if used_bytes(made.owner) + made.size > most:
                raise ChatError(
                    "storage_full",
                    _("Your files use all of your %(most)s. Delete some in the settings.")
                    % {"most": languages.size(most)},
                )
            made.save(force_insert=True)
    except OSError as error:
        _remove(stored)
        logger.exception("an attachment could not be stored in PRIVATE_ROOT")
        raise ChatError(
            "unavailable", _("The file could not be stored. Try again later.")
        ) from error
    except BaseException:
        _remove(stored)
        raise


def _remove(stored: Sequence[str]) -> None:
    for name in stored:
        private_files.remove(name)


def used_bytes(user: User) -> int:
    """Return the bytes that a user's files take, also those of apps above (`counters`)."""
    found: int | None = Attachment.objects.filter(owner=user).aggregate(all=Sum("size"))["all"]
    return (found or 0) + sum(count(user) for count in counters)


def discard(*, user: User, attachment_id: UUID) -> None:
    """Delete an attachment that is in no message; one that is not found is deleted already."""
    with transaction.atomic():
        mine = Attachment.objects.select_for_update().filter(pk=attachment_id, owner=user)
        if (found := mine.first()) is not None and not found.links.exists():
            found.delete()


def take(user: User, ids: Sequence[UUID]) -> list[Attachment]:
    """Return the user's attachments with these ids for a message, in this order, locked until the COMMIT.

    Raises ChatError `file_missing` and `too_many`.
    """
    wanted = list(dict.fromkeys(ids))
    if len(wanted) > settings.ATTACHMENTS_PER_MESSAGE:
        raise too_many()
    rows = Attachment.objects.select_for_update(no_key=True).filter(owner=user, pk__in=wanted)
    found = {
        one.pk: one for one in rows.order_by("pk")
    }  # in one order, or two requests could block
    if len(found) < len(wanted):
        raise ChatError("file_missing")
    return [found[id] for id in wanted]


def too_many() -> ChatError:
    """Return the refusal of a message with too many files."""
    return ChatError(
        "too_many",
        _("A message may have %(most)d files. Remove some of them.")
        % {"most": settings.ATTACHMENTS_PER_MESSAGE},
    )


def described(user: User, ids: Sequence[UUID]) -> list[dict[str, Any]]:
    """Return the entries of `Message.attached` for the user's attachments among these ids."""
    found = Attachment.objects.filter(owner=user).in_bulk(ids) if ids else {}
    return [found[id].snapshot for id in ids if id in found]


def keep_unsent(user: User, ids: Sequence[UUID]) -> None:
    """Keep attachments for a message that waits for its user or for a reply, for up to QUEUED_KEPT."""
    mine = Attachment.objects.filter(owner=user, pk__in=ids, expires_at__isnull=False)
    mine.update(expires_at=timezone.now() + QUEUED_KEPT)


def kept_ids(attached: Sequence[dict[str, Any]] | None) -> list[UUID]:
    """Return the ids of the attachments of a message, without deleted ones."""
    return [UUID(one["id"]) for one in attached or () if not one.get("deleted")]


def check_model(model: LanguageModel, attached: Sequence[dict[str, Any]]) -> None:
    """Raise ChatError `no_vision` for images that a model does not see."""
    if not model.vision and any(one["kind"] == Attachment.Kind.IMAGE for one in attached):
        raise ChatError(
            "no_vision",
            _("%(model)s cannot see images. Nothing was sent. Choose a model with vision.")
            % {"model": model},
        )
