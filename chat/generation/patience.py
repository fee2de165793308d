"""Calls of the database that a run in a worker waits for, also while Postgres is unreachable."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from chatproject.lib import db

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

# Seconds, while Postgres is unreachable: between two tries, and until a run that has not begun
# gives up. Storing a finished reply is retried without a limit.
RETRY_PAUSE = 1.0
PATIENCE = 60.0


async def with_patience(fn: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function that reads, claims or may be repeated, retrying while Postgres is unreachable."""
    loop = asyncio.get_running_loop()
    give_up_at = loop.time() + PATIENCE
    while True:
        try:
            return await db.run(fn, *args, **kwargs)
        except db.UNREACHABLE as error:
            if loop.time() > give_up_at:
                raise
            logger.warning("a run waits for the database: %s", error)
            await asyncio.sleep(RETRY_PAUSE)
