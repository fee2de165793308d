"""The queue of insights in RQ. Ids travel in a job; a lost job is enqueued again by the clock."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from functools import cache

import django_rq
import redis
from rq.queue import Queue

from chat.insights.models import Insight
from chatproject.lib import log_context
from chatproject.lib.redis.clients import sync_client

logger = logging.getLogger(__name__)


def enqueue(insights: Iterable[Insight]) -> None:
    """Enqueue the next attempt of insights, after the commit; without Redis the clock does it later."""
    try:
        for one in insights:
            _queue().enqueue_call(
                func="chat.insights.jobs.make",
                kwargs={"insight_id": str(one.pk), "attempt": one.attempt},
                meta=log_context.carried(),
                description=f"{one}, attempt {one.attempt + 1}",
                result_ttl=0,
            )
    except redis.RedisError as error:
        logger.warning("insights are left to the clock: %s", error)


@cache
def _queue() -> Queue:
    # "auto" enqueues at once: this module is called after the commit.
    return django_rq.get_queue("insights", commit_mode="auto", connection=sync_client())
