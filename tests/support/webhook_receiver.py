"""A receiver of webhooks at a local port: it keeps the requests, and answers as a test tells it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

SIZE = 20_000_000  # bytes of a huge answer, of which the receiver notes how many it could send


@dataclass
class Receiver:
    """Answers with `answers` in their order, then with 204; an answer is a status or a behaviour.

    Behaviours: "huge" (an endless body), "redirect" (to itself), "silent" (none until the test ends), "hang-up",
    "garbage" (no HTTP), "headers" (endless headers).
    """

    address: str
    answers: list[int | str] = field(default_factory=list)
    requests: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    on_request: Callable[[], object] | None = None
    written: int = 0
    ended: threading.Event = field(default_factory=threading.Event)

    @property
    def url(self) -> str:
        """Its address, for a webhook."""
        return f"http://{self.address}/hook?a=1"

    @property
    def ids(self) -> list[str]:
        """The `webhook-id` of each request."""
        return [headers["webhook-id"] for headers, _body in self.requests]


@contextmanager
def webhook_receiver() -> Iterator[Receiver]:
    """A receiver at a local port."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            receiver.requests.append((headers, body))
            if receiver.on_request is not None:
                receiver.on_request()
            answer = receiver.answers.pop(0) if receiver.answers else 204
            if isinstance(answer, int):
                text = b"answer \x00 of the receiver" if answer not in (204, 304) else b""
                self.send_response(answer)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)
            else:
                getattr(self, f"answer_{answer.replace('-', '_')}")()

        def do_GET(self) -> None:
            receiver.requests.append(({"webhook-id": "followed"}, b""))
            self.send_response(200)
            self.end_headers()

        def answer_huge(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(SIZE))
            self.end_headers()
            try:
                while receiver.written < SIZE:
                    self.wfile.write(b"x" * 10_000)
                    receiver.written += 10_000
            except OSError:
                self.close_connection = True

        def answer_redirect(self) -> None:
            self.send_response(302)
            self.send_header("Location", f"http://{receiver.address}/other")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def answer_silent(self) -> None:
            receiver.ended.wait(30)
            self.close_connection = True

        def answer_hang_up(self) -> None:
            self.close_connection = True

        def answer_garbage(self) -> None:
            self.wfile.write(b"this is no HTTP\r\n\r\n")
            self.close_connection = True

        def answer_headers(self) -> None:
            self.wfile.write(b"HTTP/1.1 200 OK\r\n")
            try:
                for _ in range(2_000):
                    self.wfile.write(b"X-A: " + b"x" * 1_000 + b"\r\n")
                    time.sleep(0)
            except OSError:
                self.close_connection = True

        def log_message(self, *_: Any) -> None:
            """Write nothing."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: Any) -> None:
            """Write nothing: a client may hang up."""

    server = Server(("127.0.0.1", 0), Handler)
    receiver = Receiver(f"127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield receiver
    finally:
        receiver.ended.set()
        server.shutdown()
        server.server_close()
        thread.join()
