"""A page is made in one thread, which is not the event loop's."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from asgiref.testing import ApplicationCommunicator
from django.http import HttpRequest, HttpResponse
from django.urls import path

from chatproject.lib.pages import PagesHandler

Respond = Callable[[HttpRequest], HttpResponse]

seen: list[tuple[str, int]] = []  # who was asked, and in which thread


class Outer:
    """A middleware of the kind that Django would give its turn on the event loop."""

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


def note(who: str) -> None:
    seen.append((who, threading.get_ident()))


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
def handler(settings: Any) -> PagesHandler:
    seen.clear()
    settings.ROOT_URLCONF = __name__
    settings.MIDDLEWARE = [f"{__name__}.Outer", f"{__name__}.inner"]
    settings.DEBUG_PROPAGATE_EXCEPTIONS = False
    return PagesHandler()


async def ask(handler: PagesHandler, where: str) -> tuple[int, bytes]:
    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": "GET",
        "path": where,
        "raw_path": where.encode(),
        "query_string": b"",
        "headers": [(b"host", b"testserver")],
    }
    connection = ApplicationCommunicator(handler, scope)
    await connection.send_input({"type": "http.request", "body": b""})
    start = await connection.receive_output(10)
    body = await connection.receive_output(10)
    await connection.wait(10)
    return start["status"], body["body"]


async def test_all_of_a_page_is_made_in_one_thread_that_is_not_the_loops(handler: PagesHandler):
    assert await ask(handler, "/page/") == (200, b"GET /page/")
    assert [who for who, _ in seen] == ["outer", "inner", "process_view", "view"]
    (thread,) = {thread for _, thread in seen}
    assert thread != threading.get_ident()


async def test_what_is_not_there_and_what_breaks_is_answered(handler: PagesHandler):
    assert await ask(handler, "/nothing/") == (404, b"not here")
    assert await ask(handler, "/broken/") == (500, b"broken")
    assert await ask(handler, "/page/") == (200, b"GET /page/")
