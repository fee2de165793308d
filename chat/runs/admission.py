"""Admission control: whether one more message of a user is accepted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import redis
from django.conf import settings
from django.utils.translation import gettext_lazy

from billing.metering import plan_limits
from chat.errors import ChatError
from chat.runs import queue, wait_estimate
from chatproject.lib import metrics, rate_limits
from chatproject.lib.rate_limits import Standing

if TYPE_CHECKING:
    from accounts.models import User

TOO_FAST = gettext_lazy("You are sending messages too fast. Wait a moment, then try again.")


def admit(user: User, *, counts: bool = True) -> None:
    """Refuse a message of a user who sends too fast, or while the queue is full or unreachable.

    It is refused before anything is stored or held. Each call counts as a message (limit `messages`), unless `counts`
    is False. The limits of the user's plan apply.

    Messages that arrive at the same time may all find the last free position: a few too many do no
    harm, and a lock for every message would. Raises ChatError `rate_limited`, `busy` or `unavailable`,
    each with `retry_after`.
    """
    try:
        limit = plan_limits.limit_of("messages", user.plan_id) if counts else None
        load = queue.count_message(user.pk, limit)
        wait = rate_limits.retry_after("messages", user.pk, limit=limit) if load.is_too_fast else 0
    except redis.RedisError as error:
        raise ChatError("unavailable", retry_after=wait_estimate.RETRY_AFTER) from error
    if load.is_too_fast:
        metrics.RATE_LIMITED.labels("messages").inc()
        rate_limits.report(Standing(limit.rates[0][0] if limit else None, 0, wait))
        raise ChatError("rate_limited", TOO_FAST, retry_after=wait)
    throughput = load.throughput
    concurrency = plan_limits.parallel_runs(user.plan_id)
    if load.admitted >= concurrency and load.throttled >= settings.USER_QUEUE_LIMIT:
        # The next of the user's messages is accepted when one of the user's runs ends.
        until_free = throughput.service / concurrency if throughput else None
        raise ChatError("rate_limited", retry_after=wait_estimate.retry_after(until_free))
    if load.queued >= settings.QUEUE_LIMIT:
        until_free = throughput.wait(load.queued - settings.QUEUE_LIMIT + 1) if throughput else None
        raise ChatError("busy", retry_after=wait_estimate.retry_after(until_free))
