"""The middleware and the view of a page run in one thread, which is not the event loop's."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from django.db import connection
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.test import AsyncRequestFactory
from django.urls import path

from chatproject.lib.db.streamed_response import in_parts
from chatproject.lib.server.asgi_types import Message
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


def query() -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT 42")
        return int(cursor.fetchone()[0])


def broken_stream(request: HttpRequest) -> StreamingHttpResponse:
    """A stream that fails after its first part; the view and both parts use the database."""

    def part(number: int) -> tuple[str, int]:
        if number == query() + 1:
            raise RuntimeError("broken on purpose")
        return "part", number + 1

    response = StreamingHttpResponse(in_parts(part, query()))
    response._resource_closers.append(lambda: seen.append(("closed", 0)))  # type: ignore[attr-defined]
    return response


def plain_stream(request: HttpRequest) -> StreamingHttpResponse:
    """A stream of a plain generator, which uses the database while it is sent."""
    return StreamingHttpResponse(f"{query()} " for _ in range(3))


urlpatterns = [
    path("page/", page),
    path("broken/", broken),
    path("broken-stream/", broken_stream),
    path("plain-stream/", plain_stream),
]
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


@pytest.mark.parametrize("parameter", ["charset*=nope''x", "x*=idna''%FF"])
async def test_undecodable_content_type_is_refused(handler: OneThreadHandler, parameter: str):
    scope: Any = AsyncRequestFactory().get("/page/").scope
    scope["headers"].append((b"content-type", f"text/plain; {parameter}".encode()))
    start, _ = await exchange(handler, scope)
    assert start["status"] == 400
    assert seen == []


async def test_missing_and_failing_pages_are_answered(handler: OneThreadHandler):
    assert await ask(handler, "/nothing/") == (404, b"not here")
    assert await ask(handler, "/broken/") == (500, b"broken")
    assert await ask(handler, "/page/") == (200, b"GET /page/")


@pytest.mark.django_db(transaction=True)
@pytest.mark.filterwarnings("ignore:StreamingHttpResponse must consume synchronous iterators")
async def test_broken_streams_leave_connections_in_the_pool(handler: OneThreadHandler):
    connections = connection.pool.max_size  # type: ignore[attr-defined]
    for _ in range(connections + 1):
        with pytest.raises(RuntimeError, match="broken on purpose"):
            await receive(handler, "/broken-stream/")
        assert seen.pop() == ("closed", 0)
        assert await receive(handler, "/plain-stream/") == b"42 42 42 "


async def receive(handler: OneThreadHandler, where: str) -> bytes:
    """Return the body of a page that a client receives over ASGI."""
    sent = await exchange(handler, AsyncRequestFactory().get(where).scope)
    return b"".join(message.get("body", b"") for message in sent)


async def exchange(handler: OneThreadHandler, scope: Any) -> list[Message]:
    """Return the messages with which the handler answers a request without a body."""
    sent: list[Message] = []

    async def messages() -> AsyncIterator[Message]:
        yield {"type": "http.request"}
        await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    await handler(scope, messages().__anext__, send)
    return sent
