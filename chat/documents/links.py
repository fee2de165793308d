"""Public links to the statistics of chats: made and ended by the owner, opened by any visitor with the address."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from functools import cache
from typing import TYPE_CHECKING
from uuid import UUID

import django_rq
import redis
from django.conf import settings
from django.db import transaction
from django.db.models import Q
from django.utils import timezone
from django.utils.translation import gettext as _
from rq.queue import Queue

from chat import access, protocol
from chat.conversations import sharing
from chat.documents.figures import card, page
from chat.documents.models import Document, StatisticsLink
from chat.errors import ChatError
from chatproject.lib import db, languages, log_context
from chatproject.lib.drawings import raster
from chatproject.lib.redis.clients import sync_client
from chatproject.lib.sandbox import SandboxError

if TYPE_CHECKING:
    from accounts.models import User

logger = logging.getLogger(__name__)

MOST_LINKS = 20  # of one document
TITLE_LENGTH = 100
JOB = "chat.documents.jobs.draw_card"
JOB_SECONDS = 60
LOST_AFTER = timedelta(minutes=2)  # a card that is not drawn: its job was lost
DRAWN = 50  # cards of one turn of the clock


def publish(
    *,
    user: User,
    document_id: UUID,
    sections: Sequence[str],
    names: str,
    title: str = "",
    days: int | None = None,
) -> StatisticsLink:
    """Make a link to a page with the chosen `sections` of a chat's statistics, which expires after `days`.

    Raises ChatError `not_found`, `not_allowed`, `bad_setting`, `bad_text`, `too_many`.
    """
    document = access.owned(user, Document, document_id)
    if not settings.SHARE_BY_LINK:
        raise ChatError("not_allowed", _("This site does not allow this kind of sharing."))
    chosen = [name for name in page.SECTIONS if name in sections]
    if not chosen:
        raise ChatError("bad_setting", _("Choose at least one of the figures."))
    if names not in StatisticsLink.Names or (
        days is not None and not 1 <= days <= sharing.MOST_DAYS
    ):
        raise ChatError("bad_setting", _("Choose one of the options."))
    title = " ".join(title.split())
    if len(title) > TITLE_LENGTH or not protocol.is_storable(title):
        raise ChatError(
            "bad_text",
            _("A title has at most %(most)d characters. Shorten it.") % {"most": TITLE_LENGTH},
        )
    with transaction.atomic():
        # Locked: a deletion, which ends the links, comes before or after.
        document = access.owned(user, Document, document.pk, lock=True)
        if document.statistics is None:
            raise ChatError("not_found", _("This document has no statistics."))
        if document.statistics_links.count() >= MOST_LINKS:
            raise ChatError(
                "too_many",
                _("A chat can have %(most)d links. End one first.") % {"most": MOST_LINKS},
            )
        made: StatisticsLink = StatisticsLink.objects.create(
            document=document,
            owner=user,
            title=title,
            names=names,
            sections=chosen,
            language=languages.active(),
            expires_at=timezone.now() + timedelta(days=days) if days else None,
        )
        db.after_commit(_enqueue, made)
    return made


def links_of(user: User, before: str = "") -> tuple[list[StatisticsLink], str]:
    """Return a page of a user's own links, newest first, and the cursor of the next page."""
    rows = StatisticsLink.objects.select_related("document").defer("card", "document__statistics")
    return sharing.page_of(rows.filter(owner=user), before)


def opened(token: str) -> StatisticsLink:
    """Return the link with a token, with its document, for any visitor.

    Raises ChatError `not_found`: also when it has expired, its document was deleted, its owner was closed, or the
    site no longer allows links.
    """
    found: StatisticsLink | None = None
    if settings.SHARE_BY_LINK:
        links = StatisticsLink.objects.select_related("document")
        found = links.filter(token=token, owner__is_active=True, document__deleted_at=None).first()
    if found is None or found.has_expired or found.document.statistics is None:
        raise ChatError("not_found")
    return found


# --- The end of links ---------------------------------------------------------------------------


def end_link(*, user: User, link_id: UUID) -> StatisticsLink:
    """End a link at once. Raises ChatError `not_found`."""
    found = access.owned(user, StatisticsLink, link_id)
    found.delete()
    return found


def end_of(document: Document) -> None:
    """End the links of a document that is deleted, also for the time after an undo."""
    _end(Q(document=document))


def end_all_of(user: User) -> None:
    """End all links of a user: the account is deleted."""
    _end(Q(owner=user))


def end(rows: Iterable[StatisticsLink]) -> None:
    """End links: staff stop an abuse."""
    _end(Q(pk__in=[one.pk for one in rows]))


def _end(which: Q) -> None:
    StatisticsLink.objects.filter(which).delete()


# --- Cards --------------------------------------------------------------------------------------


def _enqueue(link: StatisticsLink) -> None:
    try:
        _enqueue_now(link)
    except redis.RedisError as error:
        logger.warning("the card of %s is left to the clock: %s", link, error)


def _enqueue_now(link: StatisticsLink) -> None:
    _queue().enqueue_call(
        func=JOB,
        kwargs={"link_id": str(link.pk)},
        timeout=JOB_SECONDS,
        meta=log_context.carried(),
        description=f"{link}",
        result_ttl=0,
    )


@cache
def _queue() -> Queue:
    # "auto" enqueues at once: this module calls it after the commit.
    return django_rq.get_queue("index", commit_mode="auto", connection=sync_client())


def draw_card(link_id: UUID) -> None:
    """Draw and store the picture that other sites show beside a link; one that cannot be drawn is stored as empty."""
    rows = StatisticsLink.objects.filter(pk=link_id, card=None)
    link = rows.select_related("document").first()
    if link is None or link.document.statistics is None:
        return
    try:
        with languages.use(link.language):
            drawn = raster.png(card.svg(link, link.document.statistics), scale=1)
    except SandboxError as error:
        logger.warning("the card of %s could not be drawn: %s", link, error)
        drawn = b""
    rows.update(card=drawn)


def draw_missing(now: datetime) -> None:
    """Enqueue the cards whose jobs were lost. Raises redis.RedisError while the queue is unreachable."""
    missing = StatisticsLink.objects.filter(card=None, created_at__lt=now - LOST_AFTER)
    for link in missing.order_by("created_at")[:DRAWN]:
        _enqueue_now(link)
