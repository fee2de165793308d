"""The middleware and the view of a page run in one thread, which is not the event loop's."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from django.http import HttpRequest, HttpResponse
from django.test import AsyncRequestFactory
from django.urls import path

from chatproject.lib.server.one_thread_handler import OneThreadHandler

Respond = Callable[[HttpRequest], HttpResponse]

seen: list[tuple[str, int]] = []  # each function that ran, and its thread


class Outer:
    """A middleware of the kind that Django's own handler runs on the event loop."""

    sync_capable = async_capable = True

    def __init__(self, get_response: Respond) -> None:
        self._get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        note("outer")
        return self._get_response(request)

    def process_view(self, request: HttpRequest, *_: object) -> None:
        note("process_view")


def inner(get_response: Respond) -> Respond:
    def respond(request: HttpRequest) -> HttpResponse:
        note("inner")
        return get_response(request)

    return respond


def note(name: str) -> None:
    seen.append((name, threading.get_ident()))


def page(request: HttpRequest) -> HttpResponse:
    note("view")
    return HttpResponse(f"{request.method} {request.path}")


def broken(request: HttpRequest) -> HttpResponse:
    raise RuntimeError("broken on purpose")


def failed(request: HttpRequest, exception: Exception | None = None) -> HttpResponse:
    return HttpResponse("not here" if exception else "broken", status=404 if exception else 500)


urlpatterns = [path("page/", page), path("broken/", broken)]
handler404 = handler500 = failed


@pytest.fixture
def handler(settings: Any) -> OneThreadHandler:
    seen.clear()
    settings.ROOT_URLCONF = __name__
    settings.MIDDLEWARE = [f"{__name__}.Outer", f"{__name__}.inner"]
    settings.DEBUG_PROPAGATE_EXCEPTIONS = False
    return OneThreadHandler()


async def ask(handler: OneThreadHandler, where: str) -> tuple[int, bytes]:
    response: Any = await handler.get_response_async(AsyncRequestFactory().get(where))
    return response.status_code, response.content


async def test_page_runs_in_one_other_thread(handler: OneThreadHandler):
    assert await ask(handler, "/page/") == (200, b"GET /page/")
    assert [name for name, _ in seen] == ["outer", "inner", "process_view", "view"]
    (thread,) = {thread for _, thread in seen}
    assert thread != threading.get_ident()


async def test_missing_and_failing_pages_are_answered(handler: OneThreadHandler):
    assert await ask(handler, "/nothing/") == (404, b"not here")
    assert await ask(handler, "/broken/") == (500, b"broken")
    assert await ask(handler, "/page/") == (200, b"GET /page/")
