"""A request of the API, and the ways to answer it."""

from __future__ import annotations

from collections.abc import Sequence

from chatproject.lib.server.asgi_types import Receive, Scope, Send

JSON = (b"content-type", b"application/json")
STREAM = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"x-accel-buffering", b"no"),  # nginx would collect the events
)
NOT_STORED = (b"cache-control", b"no-store")


class Request:
    """A request whose body was read. `headers` are added to its answer."""

    def __init__(
        self, scope: Scope, receive: Receive, send: Send, authorization: str, body: bytes
    ) -> None:
        self.path: str = scope["path"]
        self.receive = receive
        self.authorization = authorization
        self.body = body
        self.headers: Sequence[tuple[bytes, bytes]] = ()
        self.has_begun = False
        self._send = send

    def take_body(self) -> bytes:
        """Return the body, which is then no longer kept."""
        body, self.body = self.body, b""
        return body

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
