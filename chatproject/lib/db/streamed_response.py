"""Long responses that are made and sent a part at a time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import AnyStr, TypeVar

from chatproject.lib.db.threads import run

T = TypeVar("T")


async def in_parts(make: Callable[[T], tuple[AnyStr, T | None]], start: T) -> AsyncIterator[AnyStr]:
    """Yield the parts of a StreamingHttpResponse: `make(start)` returns one and where to go on.

    `make` may use the database; it has a connection only while it works, not while a slow client
    reads. The last part goes on at None.
    """
    at: T | None = start
    while at is not None:
        part, at = await run(make, at)
        yield part


async def no_part() -> AsyncIterator[str]:
    """Yield nothing: the body of an answer to HEAD, whose length only the whole response would show."""
    parts: tuple[str, ...] = ()
    for part in parts:
        yield part
