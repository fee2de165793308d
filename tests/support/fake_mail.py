"""A mail server on loopback, which keeps what it receives or refuses it."""

from __future__ import annotations

import email
import socketserver
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from email.message import Message


class FakeMailServer(socketserver.ThreadingTCPServer):
    """Accepts mails.

    `answers` replaces the answer to a command, such as {"RCPT": "550 No"}, or to a command and its
    argument. With `drip` each byte of an answer is sent alone, so many seconds after the last one.
    """

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Session)
        self.received: list[Message] = []
        self.answers: dict[str, str] = {}
        self.drip = 0.0
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
            command = line.decode().strip()
            verb = command.split()[0].upper()
            answer = self.server.answers.get(command) or self.server.answers.get(verb)
            if answer:
                self.answer(answer)
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
        data = f"{line}\r\n".encode()
        if not self.server.drip:
            self.wfile.write(data)
            return
        with suppress(OSError):  # the client has left
            for byte in data:
                self.wfile.write(bytes([byte]))
                time.sleep(self.server.drip)


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
