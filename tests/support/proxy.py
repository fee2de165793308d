"""An HTTP proxy on loopback that records the addresses it is asked for."""

from __future__ import annotations

import base64
import http.client
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self
from urllib.parse import urlsplit

ANSWER = (
    b'data: {"choices":[{"index":0,"delta":{"content":"proxied"},"finish_reason":"stop"}]}\n\n'
    b"data: [DONE]\n\n"
)


class Proxy:
    """Forwards requests to hosts on loopback, and answers for all others with one token.

    `targets` are the addresses of its requests, oldest first. With a `user`, it asks for it.
    """

    def __init__(self, user: str = "", password: str = "") -> None:
        self.targets: list[str] = []
        self._authorization = ""
        if user:
            credentials = base64.b64encode(f"{user}:{password}".encode()).decode()
            self._authorization = f"Basic {credentials}"
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                proxy.answer(self)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        """Answer one request."""
        body = request.rfile.read(int(request.headers["Content-Length"]))
        if request.headers.get("Proxy-Authorization", "") != self._authorization:
            request.send_error(407)
            return
        self.targets.append(request.path)
        target = urlsplit(request.path)
        status, answer = 200, ANSWER
        if target.hostname == "127.0.0.1":
            connection = http.client.HTTPConnection(target.hostname, target.port or 80, timeout=10)
            headers = {
                name: value
                for name, value in request.headers.items()
                if not name.lower().startswith("proxy-")
            }
            connection.request("POST", target.path, body, headers)
            response = connection.getresponse()
            status, answer = response.status, response.read()
            connection.close()
        request.send_response(status)
        request.send_header("Content-Type", "text/event-stream")
        request.send_header("Content-Length", str(len(answer)))
        request.end_headers()
        request.wfile.write(answer)
