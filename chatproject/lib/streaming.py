"""Long answers that are made and sent a part at a time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import TypeVar

from chatproject.lib import db

T = TypeVar("T")


async def in_parts(make: Callable[[T], tuple[str, T | None]], start: T) -> AsyncIterator[str]:
    """For a StreamingHttpResponse: calls `make(start)`, which returns a part and where to go on.

    `make` may use the database; it has a connection only while it works, not while a slow client
    reads. The last part goes on at None.
    """
    at: T | None = start
    while at is not None:
        part, at = await db.run(make, at)
        yield part
