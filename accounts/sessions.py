"""Sessions whose time has passed."""

from __future__ import annotations

from datetime import datetime

from django.contrib.sessions.models import Session

BATCH = 1_000


def clear_expired(now: datetime) -> None:
    """Delete a batch of expired sessions; called by the clock.

    A request that stores its session at the same time has made it valid again, and keeps it.
    """
    expired = Session.objects.filter(expire_date__lt=now)
    batch = list(expired.order_by("expire_date").values_list("pk", flat=True)[:BATCH])
    expired.filter(pk__in=batch).delete()
