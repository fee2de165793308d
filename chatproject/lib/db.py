"""How asynchronous code reaches the database: through `run`, and through nothing else.

A call runs in one of DB_THREADS threads of this process. Its connection goes back to psycopg's pool
when the call is over, so that a process holds no more connections than it has calls under way.
Channels' own helper would put all calls of a process through one thread (see docs/architecture.md).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import ParamSpec, TypeVar

from django.conf import settings
from django.db import InterfaceError, OperationalError, connections
from psycopg_pool import PoolTimeout

# What a call raises while Postgres does not answer or gives no connection: it may be tried again.
# Other database errors are faults of ours, and trying again would not help.
UNREACHABLE = (OperationalError, InterfaceError, PoolTimeout)

P = ParamSpec("P")
T = TypeVar("T")


async def run(fn: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a synchronous function that uses the database, without blocking the event loop.

    Waits for a free thread when all are busy. Raises what the function raises. When the caller is
    cancelled the function still runs to its end: write it so that this does no harm.
    """
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(_threads(), partial(_call, fn, *args, **kwargs))


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=settings.DB_THREADS, thread_name_prefix="db")


def _call(fn: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    try:
        return fn(*args, **kwargs)
    finally:
        connections.close_all()
