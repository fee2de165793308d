"""Receivers of billing's own signals."""

from __future__ import annotations

import logging

import redis
from django.conf import settings

from billing.payments import auto_top_up
from billing.signals import balance_changed

logger = logging.getLogger(__name__)


def connect() -> None:
    """Connect the receivers that the settings enable."""
    if settings.AUTO_TOP_UP:
        balance_changed.connect(consider_top_up, dispatch_uid="billing.payments.auto_top_up")


def consider_top_up(sender: object, *, account_id: int, **kwargs: object) -> None:
    """Enqueue an automatic top-up if the balance needs one.

    While the queue is unreachable, the next change of the balance tries again.
    """
    try:
        auto_top_up.after_spend(account_id)
    except redis.RedisError as error:
        logger.warning("the top-up of account %d was not enqueued: %s", account_id, error)
