"""Announcements: the banners that a user sees, closing one, and their publication to open pages.

Each process keeps the announcements of all users in memory for REFRESH seconds, so that pages need no query while
there is none. A page that was opened earlier receives `announcements.changed`, and fetches its banners anew.
"""

from __future__ import annotations

import time
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from django.db.models import Q
from django.utils import timezone

from chat import protocol
from chat.errors import ChatError
from chat.models import Announcement, AnnouncementDismissal
from chat.streaming import groups
from chatproject.lib.pubsub.layer import publish

if TYPE_CHECKING:
    from accounts.models import User

REFRESH = 5.0  # seconds
EVERY = 10.0  # seconds between two looks of the clock
MOST = 20  # announcements that are read; a page shows MOST_SHOWN
MOST_SHOWN = 3
CHANGED = protocol.AnnouncementsChanged().encode()


class _Memory:
    """The announcements that have not ended, as they were last read."""

    def __init__(self) -> None:
        self.found: list[Announcement] = []
        self.due = 0.0  # time.monotonic() of the next reading

    def read(self, *, is_fresh: bool) -> list[Announcement]:
        if is_fresh or time.monotonic() >= self.due:
            open_ended = Q(ends_at=None) | Q(ends_at__gt=timezone.now())
            rows = Announcement.objects.filter(open_ended).prefetch_related("groups")
            self.found = list(rows[:MOST])
            self.due = time.monotonic() + REFRESH
        return self.found


memory = _Memory()


def for_user(user: User, *, is_fresh: bool = False) -> list[Announcement]:
    """Return the announcements that a user sees now, the newest first; at most MOST_SHOWN.

    They may be REFRESH seconds old, unless `is_fresh`.
    """
    now = timezone.now()
    due = [
        one
        for one in memory.read(is_fresh=is_fresh)
        if one.starts_at <= now and (one.ends_at is None or one.ends_at > now)
        if one.audience != Announcement.Audience.STAFF or user.is_staff
    ]
    if any(one.audience == Announcement.Audience.GROUPS for one in due):
        mine = set(user.groups.values_list("pk", flat=True))
        due = [
            one
            for one in due
            if one.audience != Announcement.Audience.GROUPS
            or mine.intersection(group.pk for group in one.groups.all())
        ]
    ids = [one.pk for one in due if one.is_dismissible]
    if ids:
        closed = set(
            AnnouncementDismissal.objects.filter(user=user, announcement__in=ids).values_list(
                "announcement_id", flat=True
            )
        )
        due = [one for one in due if one.pk not in closed]
    return due[:MOST_SHOWN]


def dismiss(*, user: User, announcement_id: int) -> None:
    """Close an announcement for a user, on all devices.

    Raises ChatError `not_found` for one that the user does not see or cannot close.
    """
    shown = {one.pk: one for one in for_user(user, is_fresh=True)}
    one = shown.get(announcement_id)
    if one is None:
        if AnnouncementDismissal.objects.filter(user=user, announcement=announcement_id).exists():
            return  # closed in another tab
        raise ChatError("not_found")
    if not one.is_dismissible:
        raise ChatError("not_found")
    AnnouncementDismissal.objects.get_or_create(user=user, announcement=one)
    publish(groups.user_group(user.pk), CHANGED)


def announce_change() -> None:
    """Have all open pages fetch their announcements. Call it after the commit."""
    publish(groups.EVERYONE, CHANGED)


class Publication:
    """The clock's part: publishes announcements that begin or end by their time."""

    def __init__(self) -> None:
        self._since: datetime | None = None

    def publish_due(self, now: datetime) -> None:
        """Publish once if an announcement began or ended since the last call."""
        since = self._since or now - timedelta(seconds=EVERY)
        self._since = now
        began = Q(starts_at__gt=since, starts_at__lte=now)
        ended = Q(ends_at__gt=since, ends_at__lte=now)
        if Announcement.objects.filter(began | ended).exists():
            announce_change()
