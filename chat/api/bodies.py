"""Reading the body of a request: after its key was checked, within a time, and within the memory of the process.

A small body that has arrived together with the head is read first, so that the key and the request take one turn
in a database thread.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

from django.conf import settings

from chat.api.errors import ApiError
from chat.api.memory import Budget
from chat.api.replies import ClientGone
from chat.api.requests import Request, in_thread
from chatproject.lib.server.asgi_types import Scope

MAX_BODY_BYTES = 20_000_000
# Of all bodies of a process that are read or not yet stored, and of those of one user.
MAX_TOTAL_BYTES = 100_000_000
MAX_USER_BYTES = MAX_TOTAL_BYTES // 2

SMALL = 65_536
QUICKLY = 0.05  # seconds for a small body

TOO_LARGE = f"The body is larger than {MAX_BODY_BYTES // 1_000_000} MB."
TOO_SLOW = "The body did not arrive within {seconds} s. Send it again, or in parts."

budget = Budget(MAX_TOTAL_BYTES, MAX_USER_BYTES)


async def read(asked: Request, scope: Scope) -> None:
    """Read the body of a request into it. Raises ApiError and ClientGone."""
    size = length_of(scope)
    body = Body(asked)
    began = asyncio.get_running_loop().time()
    if size is not None and size <= min(SMALL, MAX_BODY_BYTES):
        with suppress(TimeoutError):
            async with asyncio.timeout(QUICKLY):
                asked.body = await body.read(size)
                return
    caller = await in_thread(asked.authenticate)
    if size is not None and size > MAX_BODY_BYTES:
        raise ApiError(413, TOO_LARGE, code="body_too_large")
    most = MAX_BODY_BYTES if size is None else size
    asked.reservation = await budget.reserve(most, caller.key.user_id)
    try:
        async with asyncio.timeout_at(began + settings.API_BODY_SECONDS):
            asked.body = await body.read(most)
    except TimeoutError:
        words = TOO_SLOW.format(seconds=settings.API_BODY_SECONDS)
        raise ApiError(408, words, code="request_timeout") from None


def length_of(scope: Scope) -> int | None:
    """Return the length that the head of a request names; None without one."""
    for name, value in scope["headers"]:
        if name == b"content-length":
            return int(value) if value.isdigit() else None
    return None


class Body:
    """The parts of a body that have arrived."""

    def __init__(self, asked: Request) -> None:
        self._asked = asked
        self._parts: list[bytes] = []
        self._size = 0

    async def read(self, most: int) -> bytes:
        """Return the whole body. Raises ApiError for one of more than `most` bytes, and ClientGone."""
        while True:
            message = await self._asked.receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            part = message.get("body", b"")
            self._size += len(part)
            if self._size > most:
                raise ApiError(413, TOO_LARGE, code="body_too_large")
            self._parts.append(part)
            if not message.get("more_body"):
                return b"".join(self._parts)
