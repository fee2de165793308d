"""A request of the API, and the ways to answer it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ParamSpec, TypeVar

import redis

from accounts import api_keys
from accounts.models import Scope as Permission
from chat.api.auth import Caller
from chat.api.errors import of_chat, of_key, of_limit
from chat.api.memory import Reservation
from chat.errors import ChatError
from chatproject.lib import db
from chatproject.lib.db import limits
from chatproject.lib.rate_limits import RateLimited
from chatproject.lib.server.asgi_types import Receive, Scope, Send

P = ParamSpec("P")
T = TypeVar("T")

JSON = (b"content-type", b"application/json")
STREAM = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"x-accel-buffering", b"no"),  # nginx would collect the events
)
NOT_STORED = (b"cache-control", b"no-store")


class Request:
    """A request: `caller` is known once its key was checked, `body` once it was read. `headers` are added to its answer."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.path: str = scope["path"]
        self.receive = receive
        self.authorization = ""
        self.caller: Caller | None = None
        self.body = b""
        self.reservation: Reservation | None = None  # of memory for the body
        self.headers: Sequence[tuple[bytes, bytes]] = ()
        self.has_begun = False
        self._send = send

    def authenticate(self) -> Caller:
        """Return the caller of the request, which is counted once. Raises ApiError.

        A second call, after a body that took its time, reads the key again: it may have been revoked meanwhile.
        """
        try:
            key = api_keys.authenticate(self.authorization, Permission.MODELS)
            if self.caller is None:
                self.caller = Caller(key, api_keys.count_request(key))
        except api_keys.KeyRefused as error:
            raise of_key(error) from None
        except RateLimited as error:
            raise of_limit(error) from None
        self.headers = self.caller.headers()
        return self.caller

    @property
    def may_read_usage(self) -> bool:
        """Whether the key may read the figures of the account."""
        return self.caller is not None and Permission.USAGE in self.caller.key.scopes

    def take_body(self) -> bytes:
        """Return the body, which is then no longer kept."""
        body, self.body = self.body, b""
        return body

    def release(self) -> None:
        """Return the memory of the body, whose content is stored, or no longer needed."""
        if self.reservation is not None:
            self.reservation.release()

    async def answer(
        self, status: int, body: bytes, headers: Sequence[tuple[bytes, bytes]] = ()
    ) -> None:
        """Send a whole answer in JSON."""
        length = (b"content-length", b"%d" % len(body))
        await self._start(status, [JSON, length, NOT_STORED, *headers])
        await self._send({"type": "http.response.body", "body": body})

    async def begin_stream(self) -> None:
        """Send the head of a stream."""
        await self._start(200, [*STREAM, NOT_STORED])

    async def send_part(self, body: bytes, *, is_last: bool = False) -> None:
        """Send a part of a stream; return when the connection takes more."""
        await self._send({"type": "http.response.body", "body": body, "more_body": not is_last})

    async def _start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self.has_begun = True
        message = {"type": "http.response.start", "status": status}
        await self._send({**message, "headers": [*headers, *self.headers]})


async def in_thread(fn: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function of the domain in a database thread; its refusals become ApiErrors."""
    try:
        return await db.run_within(limits.ANSWER, fn, *args, **kwargs)
    except ChatError as error:
        raise of_chat(error) from error
    except (redis.RedisError, *db.UNREACHABLE) as error:
        raise of_chat(ChatError("unavailable", retry_after=5)) from error
