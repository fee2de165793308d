"""Pages over ASGI, at the price of one thread for each request."""

from __future__ import annotations

from typing import TYPE_CHECKING

from asgiref.sync import sync_to_async
from django.core.handlers.asgi import ASGIHandler

if TYPE_CHECKING:
    from django.http import HttpRequest
    from django.http.response import HttpResponseBase


class PagesHandler(ASGIHandler):
    """Django's handler, with all middleware and the view in one call.

    Django's own gives each middleware its turn on the event loop and goes into the request's thread
    and back for each of its methods, since one of them might be asynchronous. All that makes our
    pages is synchronous: the ways to and fro took half of the time of a small answer.
    """

    def load_middleware(self, is_async: bool = False) -> None:
        super().load_middleware(is_async=False)

    async def get_response_async(self, request: HttpRequest) -> HttpResponseBase:
        return await sync_to_async(self.get_response)(request)
