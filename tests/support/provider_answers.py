"""Answers that real providers gave, as bytes, and a provider that gives one of them.

tests/chat/data/provider_answers.json has the cases: each is an answer and the expected outcome, with
the conditions under which the provider gives it (`refuse`). Their words are

    (nothing), always       to every request
    first                   to the first request
    while not shorter       to requests whose messages are as long as those of the first
    while cap>N             to requests for a longer reply than N tokens
    while system            to requests with a message of that role
    while NAME              to requests with that parameter

Any other request gets a good reply, whose text is GOOD_TEXT.
"""

from __future__ import annotations

import base64
import json
import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

CASES_FILE = Path(__file__).parents[1] / "chat" / "data" / "provider_answers.json"

GOOD_TEXT = "A good reply."
GOOD_ANSWER = (
    b'data: {"choices":[{"index":0,"delta":{"content":"A good reply."},"finish_reason":null}]}\n\n'
    b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":5,"completion_tokens":3}}\n\n'
    b"data: [DONE]\n\n"
)


@dataclass(frozen=True, slots=True)
class Case:
    """An answer and its expected outcome; `needs` are fields of the model that it takes.

    The provider pauses `silence` seconds after the first event of the answer.
    """

    id: str
    body: bytes
    expect: dict[str, Any]
    status: int = 200
    content_type: str = "text/event-stream"
    refuse: str = ""
    needs: dict[str, int] | None = None
    silence: float = 0.0


def load_cases() -> list[Case]:
    """Return all cases of the file."""
    return [
        Case(
            id=each["id"],
            body=base64.b64decode(each["body_base64"]),
            expect=each["expect"],
            status=each["status"],
            content_type=each["content_type"],
            refuse=each.get("refuse", ""),
            needs=each.get("needs"),
            silence=each.get("silence", 0.0),
        )
        for each in json.loads(CASES_FILE.read_text(encoding="utf-8"))
    ]


class AnsweringProvider:
    """A provider in threads of this process that gives a case's answer; `requests` are the bodies.

    Use it in a `with` statement.
    """

    def __init__(self, case: Case) -> None:
        self.case = case
        self.requests: list[dict[str, Any]] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=[0.05], daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def refuses(self, request: dict[str, Any]) -> bool:
        """Return whether the case's answer is the one to this request, which is already recorded."""
        condition = self.case.refuse.removeprefix("while ")
        if condition in {"", "always"}:
            return True
        if condition == "first":
            return len(self.requests) == 1
        if condition == "not shorter":
            return length(request) >= length(self.requests[0])
        if condition.startswith("cap>"):
            caps = [request.get("max_tokens"), request.get("max_completion_tokens")]
            return max(filter(None, caps), default=0) > int(condition.removeprefix("cap>"))
        if condition == "system":
            return any(message["role"] == "system" for message in request["messages"])
        return condition in request

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        provider = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                provider.requests.append(request)
                good = Case(id="good", body=GOOD_ANSWER, expect={})
                case = provider.case if provider.refuses(request) else good
                self.send_response(case.status)
                self.send_header("Content-Type", case.content_type)
                self.end_headers()
                first, end, rest = case.body.partition(b"\n\n")
                self.wfile.write(first + end)
                self.wfile.flush()
                time.sleep(case.silence)
                self.wfile.write(rest)

            def log_message(self, *_: object) -> None:
                """Log nothing."""

        return Handler


def length(request: dict[str, Any]) -> int:
    """Return the characters of a request's messages."""
    return sum(len(message["content"]) for message in request["messages"])
