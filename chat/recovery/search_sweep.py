"""The sweep of the search: messages that are not indexed are indexed by a job of the low queues."""

from __future__ import annotations

from datetime import datetime

from chat.conversations import search_index
from chat.runs import queue

EVERY = 10.0  # seconds


def enqueue_missing(now: datetime) -> None:
    """Enqueue the indexing of messages if one is missing; raises redis.RedisError."""
    if search_index.is_behind():
        queue.enqueue_index()
