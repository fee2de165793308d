"""Django's ASGI handler, with one thread call for each request."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import IO, TYPE_CHECKING, Any

from asgiref.sync import sync_to_async
from django.core.handlers.asgi import ASGIHandler
from django.db import connections
from django.http import HttpResponseBadRequest

from chatproject.lib.server.late_response import LateResponse

if TYPE_CHECKING:
    from django.core.handlers.asgi import ASGIRequest
    from django.http import HttpRequest
    from django.http.response import HttpResponseBase

    from chatproject.lib.server.asgi_types import Send

logger = logging.getLogger(__name__)


class OneThreadHandler(ASGIHandler):
    """Runs all middleware and the view in one thread call; all of them must be synchronous.

    Django's own handler runs each middleware on the event loop and enters the request's thread anew
    for each of its methods, since any of them might be asynchronous. One call saves 2 ms of CPU per
    request, half of a small response: `make bench ARGS=requests`.

    Each call is made inside `around()`. It returns its database connection before anything is sent:
    Django keeps it until the response is closed, so as long as the slowest client reads, and for ever
    when sending fails.
    """

    def __init__(self, around: Callable[[], AbstractContextManager[None]] = nullcontext) -> None:
        super().__init__()
        self._around = around

    def load_middleware(self, is_async: bool = False) -> None:
        super().load_middleware(is_async=False)

    def create_request(
        self, scope: Mapping[str, Any], body_file: IO[bytes]
    ) -> tuple[ASGIRequest, None] | tuple[None, HttpResponseBase]:
        try:
            return super().create_request(scope, body_file)
        except (LookupError, ValueError) as error:
            # Django decodes the parameters of a Content-Type by the charset that each of them names.
            logger.warning("a request was refused: %s", error)
            return None, HttpResponseBadRequest("Bad Request\n", content_type="text/plain")

    async def get_response_async(self, request: HttpRequest) -> HttpResponseBase:
        def respond() -> HttpResponseBase:
            with self._around():
                try:
                    return self.get_response(request)
                finally:
                    connections.close_all()

        return await sync_to_async(respond)()

    async def send_response(self, response: HttpResponseBase, send: Send) -> None:
        try:
            if isinstance(response, LateResponse):
                await response.made()
            await super().send_response(response, send)  # type: ignore[arg-type]
        except Exception:
            # Django closes a response only when it was sent or its client hung up.
            await sync_to_async(response.close)()
            raise
