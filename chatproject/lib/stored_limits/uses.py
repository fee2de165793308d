"""Counting of a limit by Redis, and by Postgres while Redis is unreachable.

Each of the two counts on its own, so that a key has at most twice its uses in a period with an outage.
"""

from __future__ import annotations

import math
from datetime import datetime, timedelta

from django.utils import timezone
from django.utils.crypto import salted_hmac

from chatproject.lib import rate_limits
from chatproject.lib.env import Limit
from chatproject.lib.rate_limits import RateLimited
from chatproject.lib.stored_limits.models import LimitUse


def hit(name: str, *key: object, reported: bool = True) -> None:
    """Count one use of a limit as `rate_limits.hit`, also without Redis. Raises RateLimited.

    Call it outside a transaction: a use of another process is counted once it is committed.
    """
    limit = rate_limits.limit_of(name)
    standing = rate_limits.hit(name, *key, reported=reported)
    if limit.rates and standing.amount is None:
        # A keyed digest, as a row may outlast an outage by a day.
        _count(name, limit, salted_hmac("stored_limits", repr((name, *key))).hexdigest()[:24])


def _count(name: str, limit: Limit, key: str) -> None:
    now = timezone.now()
    longest = max(seconds for _amount, seconds in limit.rates)
    # First the row, then the count: of uses at the same time each sees all that were stored before its own.
    use = LimitUse.objects.create(key=key, used_at=now, expires_at=now + timedelta(seconds=longest))
    for amount, seconds in limit.rates:
        within = LimitUse.objects.filter(key=key, used_at__gt=now - timedelta(seconds=seconds))
        times = within.order_by("-used_at").values_list("used_at", flat=True)[: amount + 1]
        if len(found := list(times)) > amount:
            use.delete()
            reset = found[amount] + timedelta(seconds=seconds) - now
            raise RateLimited(name, max(1, math.ceil(reset.total_seconds())), amount)


def clear_expired(now: datetime) -> None:
    """Delete the uses that no longer count; called by the clock."""
    LimitUse.objects.filter(expires_at__lte=now).delete()
