"""What billing does when a balance has changed."""

from __future__ import annotations

import logging

import redis
from django.conf import settings

from billing.signals import balance_changed

logger = logging.getLogger(__name__)


def connect() -> None:
    """Listen, as far as the settings ask for it."""
    if settings.AUTO_TOP_UP:
        balance_changed.connect(consider_top_up, dispatch_uid="billing.payments.auto_top_up")


def consider_top_up(sender: object, *, account_id: int, **kwargs: object) -> None:
    """See whether credits are to be bought; when the queue is away, the next change tries again."""
    from billing.payments import auto_top_up

    try:
        auto_top_up.after_spend(account_id)
    except redis.RedisError as error:
        logger.warning("account %d is not topped up now: %s", account_id, error)
