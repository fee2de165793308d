"""A response that is made after the thread of its request was returned, with its status and headers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

from django.http import HttpResponse, StreamingHttpResponse


class LateResponse(StreamingHttpResponse):
    """A response that a coroutine makes, which may wait for long: OneThreadHandler awaits it before the head is sent.

    Middleware sees a stream with the status 200.
    """

    def __init__(self, make: Callable[[], Awaitable[HttpResponse]], *, content_type: str) -> None:
        self._make = make
        self._made: HttpResponse | None = None
        super().__init__(self._body(), content_type=content_type)

    async def made(self) -> HttpResponse:
        """Make the response, once; take over its status and headers."""
        if self._made is None:
            self._made = await self._make()
            self.status_code = self._made.status_code
            for name, value in self._made.items():
                self[name] = value
        return self._made

    async def _body(self) -> AsyncIterator[bytes]:
        yield (await self.made()).content
