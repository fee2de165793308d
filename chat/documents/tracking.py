"""The life of reading a document: its job, its progress, its end, and the clock's care for lost jobs.

Of any number of jobs one claims an attempt (compare-and-set on status and attempt), and only its changes of
the row have an effect.
"""

from __future__ import annotations

import logging
import time
from datetime import datetime, timedelta
from functools import cache
from typing import Any
from uuid import UUID

import django_rq
import redis
from django.utils import timezone
from rq.queue import Queue

from chat import protocol
from chat.documents.models import Document
from chat.streaming import user_channel
from chatproject.lib import log_context
from chatproject.lib.redis.clients import sync_client

logger = logging.getLogger(__name__)

JOB = "chat.documents.jobs.read_document"
JOB_SECONDS = 900
ATTEMPTS = 3
LOST_AFTER = timedelta(minutes=2)  # without progress: its worker died, or its job was lost
BEAT = 1.0  # seconds between two changes of the row
RESUMED = 100  # rows of one turn of the clock

Status = Document.Status


class Superseded(Exception):
    """Another attempt has begun, or the document was deleted."""


def enqueue(document: Document) -> None:
    """Enqueue the reading of a document, after the commit; without Redis the clock does it later."""
    try:
        _enqueue(document)
    except redis.RedisError as error:
        logger.warning("%s is left to the clock: %s", document, error)


def _enqueue(document: Document) -> None:
    _queue().enqueue_call(
        func=JOB,
        kwargs={"document_id": str(document.pk), "attempt": document.attempt},
        timeout=JOB_SECONDS,
        meta=log_context.carried(),
        description=f"{document}, attempt {document.attempt + 1}",
        result_ttl=0,
    )


@cache
def _queue() -> Queue:
    # "auto" enqueues at once: this module calls it after the commit.
    return django_rq.get_queue("index", commit_mode="auto", connection=sync_client())


def claim(document_id: UUID, attempt: int) -> Document | None:
    """Begin the attempt after `attempt`; return None if another job has claimed it."""
    rows = Document.objects.filter(pk=document_id, attempt=attempt, status=Status.UPLOADED)
    if not rows.update(
        status=Status.PARSING, attempt=attempt + 1, beat_at=timezone.now(), percent=0, reason=""
    ):
        return None
    document: Document | None = Document.objects.filter(pk=document_id).first()
    if document is not None:
        announce(document)
    return document


class Progress:
    """Writes the progress of an attempt into the row and to the user's pages, every BEAT seconds."""

    def __init__(self, document: Document) -> None:
        self._document = document
        self._due = time.monotonic() + BEAT

    def rows(self) -> Any:
        """Return the row of the document, while this attempt is the present one."""
        return Document.objects.filter(
            pk=self._document.pk, status=Status.PARSING, attempt=self._document.attempt
        )

    def reach(self, percent: int) -> None:
        """Record how much was done. Raises Superseded."""
        self._document.percent = max(self._document.percent, min(99, percent))
        if time.monotonic() >= self._due:
            self._due = time.monotonic() + BEAT
            self.change(percent=self._document.percent, beat_at=timezone.now())
            announce(self._document)

    def expect(self, seconds: float) -> None:
        """Record that no progress comes for so many seconds, for `resume`. Raises Superseded."""
        self.change(beat_at=timezone.now() + timedelta(seconds=seconds))

    def change(self, **fields: Any) -> None:
        """Change the row of the attempt. Raises Superseded."""
        if not self.rows().update(**fields):
            raise Superseded

    def end(self, **fields: Any) -> None:
        """End the attempt as ready, with what was found; announce it after the commit. Raises Superseded."""
        fields |= {"status": Status.READY, "percent": 100, "parsed_at": timezone.now()}
        self.change(reason="", **fields)

    def fail(self, reason: str, details: dict[str, Any]) -> None:
        """End the attempt as failed for a reason of chat.documents.reasons. Raises Superseded."""
        self.change(status=Status.FAILED, reason=reason, details=details, percent=0)
        self.announce()

    def announce(self) -> None:
        """Publish the state of the row."""
        self._document.refresh_from_db(fields=["status", "percent", "reason"])
        announce(self._document)


def retry(document: Document) -> bool:
    """Read a document again whose reading failed, or whose options were changed; return whether it is enqueued."""
    failed = Document.objects.filter(pk=document.pk, status=Status.FAILED)
    values = {"status": Status.UPLOADED, "attempt": 0, "percent": 0, "reason": ""}
    if not failed.update(beat_at=timezone.now(), options=document.options, **values):
        return False
    document.refresh_from_db()
    enqueue(document)
    announce(document)
    return True


def resume(now: datetime) -> None:
    """Enqueue jobs again that were lost, or end them as interrupted.

    Raises redis.RedisError while the queue is unreachable.
    """
    lost = Document.objects.filter(status__in=Document.ACTIVE, beat_at__lt=now - LOST_AFTER)
    for one in lost.order_by("beat_at")[:RESUMED]:
        same = Document.objects.filter(pk=one.pk, status=one.status, attempt=one.attempt)
        if one.attempt >= ATTEMPTS:
            if same.update(status=Status.FAILED, reason="interrupted", percent=0):
                one.status, one.reason = Status.FAILED, "interrupted"
                announce(one)
        elif same.update(status=Status.UPLOADED, beat_at=now):
            _enqueue(one)


def announce(document: Document) -> None:
    """Publish the state of a document to its owner's pages."""
    event = protocol.DocumentUpdated(
        document=document.pk,
        name=document.name,
        url=document.get_absolute_url(),
        status=document.status,
        percent=document.percent,
        reason=document.reason,
        index_status=document.index_status,
        deleted=document.deleted_at is not None,
    )
    user_channel.announce_document(document.owner_id, event)
