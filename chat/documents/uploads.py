"""Uploads of documents: checked, stored and handed to a job.

A file is stored before its row. chat.documents.sweep removes files whose row was never stored.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.contrib.auth import get_user_model
from django.db import IntegrityError, transaction
from django.db.models import Sum
from django.utils.translation import gettext as _

from billing.metering import plan_limits
from chat.attachments import names
from chat.attachments.uploads import used_bytes
from chat.documents import binding, reasons, storage, tracking
from chat.documents.models import Document
from chat.errors import ChatError
from chat.models import Project
from chatproject.lib import languages, private_files, sandbox
from chatproject.lib.sandbox import Limits, SandboxError

if TYPE_CHECKING:
    from accounts.models import User

logger = logging.getLogger(__name__)

CHUNK = 1_048_576
DETECTION = Limits(memory=200_000_000, seconds=20, cpu=15, output=100_000)


@dataclass(frozen=True, slots=True)
class Upload:
    """The document of an uploaded file; not `is_new` when its owner had uploaded the same file before."""

    document: Document
    is_new: bool


def add(
    *, user: User, name: str, size: int, chunks: Iterable[bytes], project: Project | None = None
) -> Upload:
    """Store an upload and enqueue the job that reads it; `size` is the announced one, 0 if it is not known.

    A file that the user has uploaded before is found again, and put into the project. Raises ChatError
    `file_too_large`, `bad_file` with a sentence of chat.documents.reasons, `storage_full`, `busy`, `unavailable`.
    """
    if size > settings.DOCUMENT_MAX_BYTES:
        raise too_large()
    digest = hashlib.sha256()
    try:
        spooled = private_files.store(_limited(chunks, digest))
    except OSError as error:
        logger.exception("a document could not be stored in PRIVATE_ROOT")
        raise _not_stored() from error
    try:
        known = Document.objects.filter(owner=user, sha256=digest.hexdigest()).first()
        if known is not None:
            return _known(known, project)
        path = private_files.path(spooled)
        size = path.stat().st_size
        kind = _detected(path, name)
        _check_space(user, size)
        try:
            file = storage.keep(spooled)
        except OSError as error:
            logger.exception("a document could not be stored")
            raise _not_stored() from error
    finally:
        private_files.remove(spooled)
    made = Document(
        owner=user,
        project=project,
        name=names.clean(name),
        format=kind["format"],
        kind=Document.KINDS.get(kind["format"], Document.Kind.TEXT),
        options=kind["options"],
        size=size,
        sha256=digest.hexdigest(),
        file=file,
    )
    try:
        with transaction.atomic():
            # Uploads of one user in turn, or two at once could exceed the limit.
            get_user_model().objects.select_for_update(no_key=True).get(pk=user.pk)
            _check_space(user, size)
            made.save(force_insert=True)
            if project is not None:
                binding.mark_project(project)
    except IntegrityError:  # the same file at the same time
        storage.remove(file)
        return _known(Document.objects.get(owner=user, sha256=made.sha256), project)
    except BaseException:
        storage.remove(file)
        raise
    tracking.enqueue(made)
    return Upload(made, True)


def _limited(chunks: Iterable[bytes], digest: Any) -> Iterator[bytes]:
    """Pass the parts of a file on, and add them to its digest. Raises ChatError beyond DOCUMENT_MAX_BYTES."""
    size = 0
    for chunk in chunks:
        size += len(chunk)
        if size > settings.DOCUMENT_MAX_BYTES:
            raise too_large()
        digest.update(chunk)
        yield chunk
    if size == 0:
        raise refusal("empty")


def _known(document: Document, project: Project | None) -> Upload:
    if project is not None and document.project_id != project.pk:
        binding.set_project(document, project)
    if document.status == Document.Status.FAILED:
        tracking.retry(document)
    return Upload(document, False)


def _detected(path: Any, name: str) -> dict[str, Any]:
    try:
        found: dict[str, Any] = sandbox.call(
            "chat.documents.parsing.run:detect",
            {"path": str(path), "name": name},
            DETECTION,
            readable=[path],
        )
    except SandboxError as error:
        raise refusal(error.reason if error.code == "failed" else error.code) from error
    except OSError as error:  # no process can be started
        raise ChatError("busy") from error
    return found


def _check_space(user: User, size: int) -> None:
    most = plan_limits.upload_bytes(user.plan_id)
    if used_bytes(user) + size > most:
        raise ChatError(
            "storage_full",
            _("Your files use all of your %(most)s. Delete some in the settings.")
            % {"most": languages.size(most)},
        )


def refusal(code: str) -> ChatError:
    """Return the refusal of a file for a reason of chat.documents.reasons."""
    return ChatError("bad_file", reasons.sentence(code))


def too_large() -> ChatError:
    """Return the refusal of a file of more than DOCUMENT_MAX_BYTES."""
    return ChatError("file_too_large", reasons.sentence("too_large"))


def _not_stored() -> ChatError:
    return ChatError("unavailable", _("The file could not be stored. Try again later."))


def stored_bytes(user: User) -> int:
    """Return the bytes of a user's documents, also of deleted ones until they are purged."""
    found: int | None = Document.all_objects.filter(owner=user).aggregate(all=Sum("size"))["all"]
    return found or 0
