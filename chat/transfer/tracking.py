"""The life of an import or an export: its job, its progress, its end, and the clock's care for lost ones.

Of any number of jobs one claims an attempt (compare-and-set on status and attempt), and only its changes of
the row have an effect.
"""

from __future__ import annotations

import logging
import time
from datetime import datetime, timedelta
from functools import cache
from typing import Any, TypeVar
from uuid import UUID

import django_rq
import redis
from django.utils import timezone
from django.utils.translation import gettext as _
from rq.queue import Queue

from chat.errors import ChatError
from chat.models import ChatExport, ChatImport
from chat.streaming import user_channel
from chatproject.lib import log_context, private_files
from chatproject.lib.redis.clients import sync_client

logger = logging.getLogger(__name__)

JOBS = {
    ChatImport: ("chat.transfer.jobs.run_import", "import_id"),
    ChatExport: ("chat.transfer.jobs.run_export", "export_id"),
}
JOB_SECONDS = 3_600
ATTEMPTS = 3
LOST_AFTER = timedelta(minutes=3)  # without progress: its worker died, or its job was lost
BEAT = 1.0  # seconds between two changes of the row
ROWS_KEPT = timedelta(days=30)

Kind = type[ChatImport] | type[ChatExport]
T = TypeVar("T", ChatImport, ChatExport)
Status = ChatImport.Status


class Superseded(Exception):
    """Another attempt has begun, or the row was stopped or deleted."""


def enqueue(one: ChatImport | ChatExport) -> None:
    """Enqueue the job of a new row; without Redis the clock does it later."""
    try:
        _enqueue(one)
    except redis.RedisError as error:
        logger.warning("%s is left to the clock: %s", one, error)


def _enqueue(one: ChatImport | ChatExport) -> None:
    job, argument = JOBS[type(one)]
    _queue().enqueue_call(
        func=job,
        kwargs={argument: str(one.pk), "attempt": one.attempt},
        timeout=JOB_SECONDS,
        meta=log_context.carried(),
        description=f"{one}, attempt {one.attempt + 1}",
    )


@cache
def _queue() -> Queue:
    # "auto" enqueues at once: this module calls it after the commit.
    return django_rq.get_queue("low", commit_mode="auto", connection=sync_client())


def claim(kind: type[T], id: UUID, attempt: int, **fields: Any) -> T | None:
    """Begin an attempt, and set fields of its row; return None if another job has claimed it."""
    claimed = kind.objects.filter(pk=id, attempt=attempt, status=Status.QUEUED).update(
        status=Status.RUNNING, attempt=attempt + 1, beat_at=timezone.now(), percent=0, **fields
    )
    return kind.objects.select_related("owner").get(pk=id) if claimed else None


class Progress:
    """Writes the progress of an attempt into the row and to the user's pages, every BEAT seconds.

    `files` counts the files of messages that the attempt has read; `left` is how many bytes of text it may store.
    """

    def __init__(self, one: ChatImport | ChatExport) -> None:
        self._one = one
        self._rows = type(one).objects.filter(pk=one.pk, status=Status.RUNNING, attempt=one.attempt)
        self._due = 0.0
        self._percent = 0
        self.files = 0
        self.left = 0

    def reach(self, percent: int) -> None:
        """Record how much was done. Raises Superseded."""
        self._percent = percent
        self.beat()

    def beat(self) -> None:
        """Record that the attempt goes on. Raises Superseded."""
        if time.monotonic() >= self._due:
            self._due = time.monotonic() + BEAT
            self.change(percent=self._percent, beat_at=timezone.now())
            self._one.percent = self._percent
            user_channel.announce_transfer(self._one)

    def change(self, **fields: Any) -> None:
        """Change the row of the attempt. Raises Superseded."""
        if not self._rows.update(**fields):
            raise Superseded

    def end(self, error: str, **fields: Any) -> None:
        """End the attempt, as failed if there is an error. Raises Superseded."""
        one = self._one
        one.status, one.percent = (Status.FAILED if error else Status.DONE), 100
        self.change(status=one.status, error=error, percent=100, ended_at=timezone.now(), **fields)
        user_channel.announce_transfer(one)


def stop(one: ChatImport | ChatExport) -> None:
    """Stop a job at its next step, and remove its file. Raises ChatError `not_found` if it has ended."""
    active = type(one).objects.filter(pk=one.pk, status__in=one.ACTIVE)
    if not active.update(status=Status.STOPPED, ended_at=timezone.now()):
        raise ChatError("not_found", _("This has ended already. There is nothing to stop."))
    private_files.remove(one.file)
    one.status = Status.STOPPED
    user_channel.announce_transfer(one)


def resume(kind: Kind, now: datetime, interrupted: str) -> None:
    """Enqueue jobs again that were lost, or end them with the sentence `interrupted`; remove old rows.

    Raises redis.RedisError while the queue is unreachable.
    """
    lost = kind.objects.filter(status__in=kind.ACTIVE, beat_at__lt=now - LOST_AFTER)
    for one in lost:
        same = kind.objects.filter(pk=one.pk, status=one.status, attempt=one.attempt)
        if one.attempt >= ATTEMPTS:
            if same.update(status=Status.FAILED, error=interrupted, ended_at=now):
                private_files.remove(one.file)
                one.status = Status.FAILED
                user_channel.announce_transfer(one)
        elif same.update(status=Status.QUEUED, beat_at=now):
            _enqueue(one)
    kind.objects.filter(ended_at__lt=now - ROWS_KEPT).delete()
