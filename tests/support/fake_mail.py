"""A mail server on loopback, which keeps what it receives or refuses it."""

from __future__ import annotations

import email
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import Message


class FakeMailServer(socketserver.ThreadingTCPServer):
    """Accepts mails. `answers` replaces the answer to a command, such as {"RCPT": "550 No"}."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Session)
        self.received: list[Message] = []
        self.answers: dict[str, str] = {}
        self.sessions = 0

    @property
    def port(self) -> int:
        return int(self.server_address[1])


class _Session(socketserver.StreamRequestHandler):
    server: FakeMailServer

    def handle(self) -> None:
        self.server.sessions += 1
        self.answer("220 fake")
        while line := self.rfile.readline():
            verb = line.split()[0].decode().upper()
            if verb in self.server.answers:
                self.answer(self.server.answers[verb])
            elif verb == "DATA":
                self.answer("354 go on")
                lines: list[bytes] = []
                while (data := self.rfile.readline()) not in (b".\r\n", b""):
                    lines.append(data)
                self.server.received.append(email.message_from_bytes(b"".join(lines)))
                self.answer("250 stored")
            elif verb == "QUIT":
                self.answer("221 bye")
                return
            else:
                self.answer("250 ok")

    def answer(self, line: str) -> None:
        self.wfile.write(f"{line}\r\n".encode())


@contextmanager
def mail_server(port: int = 0) -> Iterator[FakeMailServer]:
    """A running mail server, on a free port unless one is given."""
    with FakeMailServer(port) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
