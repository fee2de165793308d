"""Alerts to the operator: a line in the log, a mail, and a message to ALERT_WEBHOOK_URL.

Nothing here waits for a network: mails go to the outbox, and a job of the queue `low` posts the message.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import redis
from django.conf import settings
from django.core.mail import send_mail

from chatproject.lib.mail.outbox import low_queue

logger = logging.getLogger(__name__)

JOB = "chatproject.ops.jobs.post_alert"


def send(subject: str, text: str, recipients: Sequence[str], *, level: int = logging.ERROR) -> None:
    """Log and send an alert; after the commit of its cause, as it goes out at once."""
    logger.log(level, "%s: %s", subject, text)
    if recipients:
        send_mail(f"{settings.SITE_NAME}: {subject}", text, None, list(recipients))
    if settings.ALERT_WEBHOOK_URL:
        try:
            # Not with its text, which RQ's pages would show.
            low_queue().enqueue_call(
                func=JOB, kwargs={"subject": subject, "text": text}, description="post an alert"
            )
        except redis.RedisError as error:
            logger.warning("an alert was not posted: %s", error)
