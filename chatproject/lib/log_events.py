"""Business events in the log and among the metrics: an event's name, and its fields."""

from __future__ import annotations

import logging

from chatproject.lib import metrics

logger = logging.getLogger("parley.events")


def log_event(event: str, *, level: int = logging.INFO, **fields: object) -> None:
    """Log and count a business event; docs/operations/logs.md lists all.

    Fields are ids, codes and numbers: never a text of a user, an e-mail address, a key or a token.
    """
    metrics.BUSINESS_EVENTS.labels(event).inc()
    logger.log(level, event, extra={"fields": fields})
