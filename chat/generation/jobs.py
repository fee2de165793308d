"""Entry points of chat's RQ jobs: coroutine functions that a worker awaits."""

from __future__ import annotations

import asyncio
import logging
from uuid import UUID

import redis

from chat.generation import generate as generation
from chat.runs import queue

logger = logging.getLogger(__name__)


async def generate(run_id: str, attempt: int) -> None:
    """Generate the reply of a run; `attempt` is the number of the attempt to claim."""
    handed_over = await generation.run(UUID(run_id), attempt)
    if handed_over is not None:
        try:
            await asyncio.to_thread(queue.enqueue, handed_over)
        except redis.RedisError:
            # The sweeper will enqueue it.
            logger.warning("run %s could not be enqueued yet", run_id)
