"""An API of chat completions whose answers a test sets, and a provider's row for it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from chat.models import Provider

KEY = "sk-live-0123456789abcd"
MODELS = {"data": [{"id": "text-embedding-3"}, {"id": "small"}]}
EVENTS = [
    {"choices": [{"index": 0, "delta": {"content": "Hello"}, "finish_reason": None}]},
    {"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]},
    {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 1}},
]
STREAM = "".join(f"data: {json.dumps(event)}\n\n" for event in EVENTS) + "data: [DONE]\n\n"

Answer = tuple[int, str, str]  # status, Content-Type (or Location for a redirect), body


def refused(status: int, message: str, code: str = "") -> Answer:
    body = {"error": {"message": message, "code": code, "type": "error"}}
    return (status, "application/json", json.dumps(body))


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Api

    def do_GET(self) -> None:
        self.answer(b"")

    def do_POST(self) -> None:
        self.answer(self.rfile.read(int(self.headers.get("Content-Length", 0))))

    def answer(self, body: bytes) -> None:
        self.server.asked.append((f"{self.command} {self.path}", body))
        status, kind, text = self.server.answer(f"{self.command} {self.path}", body)
        self.send_response(status)
        self.send_header("Location" if 300 <= status < 400 else "Content-Type", kind)
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *arguments: object) -> None:
        pass


class Api(ThreadingHTTPServer):
    """An API below /v1; `complete` answers its requests for completions."""

    daemon_threads = True
    complete: Callable[[dict[str, object]], Answer]

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[tuple[str, bytes]] = []
        self.models: object = MODELS
        self.infos: object = None  # of LiteLLM's /model/info
        self.other: Answer = (404, "text/html", "<!doctype html><title>Welcome</title>")
        self.complete = lambda body: (200, "text/event-stream", STREAM)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def answer(self, route: str, body: bytes) -> Answer:
        if route == "GET /v1/models":
            return (200, "application/json", json.dumps(self.models))
        if route == "GET /v1/model/info" and self.infos is not None:
            return (200, "application/json", json.dumps(self.infos))
        if route == "POST /v1/chat/completions":
            asked = json.loads(body)
            return self.complete(asked) if asked else refused(400, "no messages")
        return self.other


@contextmanager
def serving() -> Iterator[Api]:
    with Api() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def api() -> Iterator[Api]:
    with serving() as server:
        yield server


@pytest.fixture
def row(api: Api) -> Provider:
    provider = Provider(name="Second", base_url=api.url)
    provider.key = KEY
    provider.headers = {"X-Secret": "a-secret-of-the-team"}
    provider.save()
    return provider
