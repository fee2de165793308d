"""Admission control: whether one more message of a user is accepted."""

from __future__ import annotations

import redis
from django.conf import settings

from chat.errors import ChatError
from chat.runs import queue, wait_estimate


def admit(user_id: int) -> None:
    """Refuse a message while the queue is full or unreachable: before anything is stored or held.

    Messages that arrive at the same time may all find the last free position: a few too many do no
    harm, and a lock for every message would. Raises ChatError `rate_limited`, `busy` or `unavailable`,
    each with `retry_after`.
    """
    try:
        load = queue.load_of(user_id)
    except redis.RedisError as error:
        raise ChatError("unavailable", retry_after=wait_estimate.RETRY_AFTER) from error
    throughput = load.throughput
    if load.admitted >= settings.USER_CONCURRENCY and load.throttled >= settings.USER_QUEUE_LIMIT:
        # The next of the user's messages is accepted when one of the user's runs ends.
        wait = throughput.service / settings.USER_CONCURRENCY if throughput else None
        raise ChatError("rate_limited", retry_after=wait_estimate.retry_after(wait))
    if load.queued >= settings.QUEUE_LIMIT:
        wait = throughput.wait(load.queued - settings.QUEUE_LIMIT + 1) if throughput else None
        raise ChatError("busy", retry_after=wait_estimate.retry_after(wait))
