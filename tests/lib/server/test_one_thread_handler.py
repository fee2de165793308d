"""The middleware and the view of a page run in one thread, which is not the event loop's."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from asgiref.testing import ApplicationCommunicator
from django.http import HttpRequest, HttpResponse
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


async def test_page_runs_in_one_other_thread(handler: OneThreadHandler):
    assert await ask(handler, "/page/") == (200, b"GET /page/")
    assert [name for name, _ in seen] == ["outer", "inner", "process_view", "view"]
    (thread,) = {thread for _, thread in seen}
    assert thread != threading.get_ident()


async def test_missing_and_failing_pages_are_answered(handler: OneThreadHandler):
    assert await ask(handler, "/nothing/") == (404, b"not here")
    assert await ask(handler, "/broken/") == (500, b"broken")
    assert await ask(handler, "/page/") == (200, b"GET /page/")
