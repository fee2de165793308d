"""A proxy on loopback that refuses WebSockets, as some company networks do, and passes everything else on."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from typing import Self

HEAD_END = b"\r\n\r\n"
REFUSAL = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class UpgradeRefuser:
    """Passes connections on to a port; one that begins with a request to upgrade is answered with 400."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.refused = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.base = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):  # closed by the test
            while True:
                client, _address = self._listener.accept()
                threading.Thread(target=self._serve, args=[client], daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, suppress(OSError):
            head = client.recv(65_536)
            while head and HEAD_END not in head:
                head += client.recv(65_536)
            if b"upgrade: websocket" in head.lower():
                self.refused += 1
                client.sendall(REFUSAL)
                return
            with socket.create_connection(("127.0.0.1", self._port)) as server:
                server.sendall(head)
                back = threading.Thread(target=self._copy, args=[server, client], daemon=True)
                back.start()
                self._copy(client, server)
                back.join()

    def _copy(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while part := source.recv(65_536):
                target.sendall(part)
        with suppress(OSError):
            target.shutdown(socket.SHUT_WR)
