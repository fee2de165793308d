"""Entry points of chat's RQ jobs: coroutine functions that a worker awaits, and plain ones of the low queues."""

from __future__ import annotations

import asyncio
import logging
from uuid import UUID

import redis

from chat.conversations import search_index
from chat.generation import generate as generation
from chat.generation import titles
from chat.runs import queue

logger = logging.getLogger(__name__)

INDEX_BATCHES = 20  # of one job; the clock enqueues the next


async def generate(run_id: str, attempt: int) -> None:
    """Generate the reply of a run; `attempt` is the number of the attempt to claim."""
    handed_over = await generation.run(UUID(run_id), attempt)
    if handed_over is not None:
        try:
            await asyncio.to_thread(queue.enqueue, handed_over)
        except redis.RedisError:
            # The sweeper will enqueue it.
            logger.warning("run %s could not be enqueued yet", run_id)


async def make_title(run_id: str) -> None:
    """Name the conversation of a run by TITLE_MODEL."""
    await titles.make_title(UUID(run_id))


def index_messages() -> None:
    """Index messages that the search does not find yet."""
    for _ in range(INDEX_BATCHES):
        if not search_index.index_batch():
            return
