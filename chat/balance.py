"""Tells a user's open pages how many credits are left, whenever billing changed that."""

from __future__ import annotations

import logging
from typing import Any

from billing import balances, credits
from chat import events
from chatproject.lib import db
from chatproject.lib.pubsub.layer import publish

logger = logging.getLogger(__name__)


def announce(*, account_id: int, **kwargs: Any) -> None:
    """Publish the balance of an account; the receiver of billing.signals.balance_changed.

    It runs after the commit, so whatever fails here must not look like a failure of that. A page
    is right again after its next reload.
    """
    try:
        found = balances.brief(account_id)
    except db.UNREACHABLE as error:
        logger.warning("the balance of account %d was not announced: %s", account_id, error)
        return
    event = events.Balance(
        balance=found.balance,
        held=found.held,
        available=found.available,
        shown=credits.show(found.available),
        low=found.low,
    )
    publish(events.user_group(found.user_id), event.encode())
