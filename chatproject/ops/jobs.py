"""Entry points of the operator's jobs.

Redis stores their paths: a renamed function must keep its old name for one release.
"""

from __future__ import annotations

import logging
import time

import httpx2
from django.conf import settings

logger = logging.getLogger(__name__)

SECONDS = 10.0  # for each try
PAUSES = (2.0, 10.0)  # seconds before another try


def post_alert(subject: str, text: str) -> None:
    """Post an alert to ALERT_WEBHOOK_URL, in the form that Slack and compatible services take.

    A failure is logged, without the URL, which is a secret.
    """
    message = {"text": f"{settings.SITE_NAME}: {subject}\n{text}"}
    for pause in (*PAUSES, None):
        try:
            answer = httpx2.post(settings.ALERT_WEBHOOK_URL, json=message, timeout=SECONDS)
        except httpx2.HTTPError as error:
            problem = type(error).__name__
        else:
            if answer.is_success:
                return
            problem = f"HTTP {answer.status_code}"
        logger.warning("the alert %r was not posted: %s", subject, problem)
        if pause is None or problem.startswith("HTTP 4"):
            return
        time.sleep(pause)
