"""A proxy on loopback that ends TLS, as wrong as a test wants it; and certificates for it."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ipaddress
import ssl
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

PART = 65_536

Headers = list[tuple[str, str]]


class TlsProxy:
    """Forwards each request to a port of loopback over a connection of its own.

    `sets` replaces headers of the request, as nginx's proxy_set_header does, `drops` removes some;
    "{client}" is the client's address. `self.url` is the address of the proxy.
    """

    def __init__(
        self,
        target: int,
        certificate: Path,
        *,
        sets: dict[str, str] | None = None,
        drops: tuple[str, ...] = (),
    ) -> None:
        self._target = target
        self._certificate = certificate
        self._sets = sets or {}
        self._drops = {name.lower() for name in drops}
        self.url = ""

    def __enter__(self) -> Self:
        started: Future[int] = Future()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(started)))
        self._thread.start()
        self.url = f"https://localhost:{started.result(10)}"
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    async def _serve(self, started: Future[int]) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self._certificate)
        # Clients that refuse the certificate are part of the tests.
        self._loop.set_exception_handler(lambda loop, details: None)
        server = await asyncio.start_server(self._handle, "127.0.0.1", 0, ssl=context)
        started.set_result(server.sockets[0].getsockname()[1])
        async with server:
            await self._stop.wait()
        # An end in the middle of a TLS shutdown would be reported by the event loop.
        handlers = asyncio.all_tasks() - {asyncio.current_task()}
        if handlers:
            await asyncio.wait(handlers, timeout=5)

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            try:
                up, down = await asyncio.open_connection("127.0.0.1", self._target)
            except OSError:
                writer.write(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")
                await writer.drain()
                writer.close()
                return
            down.write(self._changed(head).encode("latin-1"))
            copies = [
                asyncio.create_task(copy(reader, down)),
                asyncio.create_task(copy(up, writer)),
            ]
            await asyncio.wait(copies, return_when=asyncio.FIRST_COMPLETED)
            for task in copies:
                task.cancel()
            down.close()
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    def _changed(self, head: str) -> str:
        request, *lines = head.rstrip("\r\n").split("\r\n")
        replaced = self._drops | {name.lower() for name in self._sets}
        kept = [line for line in lines if line.partition(":")[0].lower() not in replaced]
        kept += [f"{name}: {value}" for name, value in self._sets.items()]
        return "\r\n".join([request, *kept]) + "\r\n\r\n"


async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copy bytes until one side closes."""
    with contextlib.suppress(OSError):
        while data := await reader.read(PART):
            writer.write(data)
            await writer.drain()


def make_certificate(path: Path, *, name: str = "localhost", days: int = 60) -> Path:
    """Write a self-signed certificate with its key, which a client can trust as its own authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=90))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(
            x509.SubjectAlternativeName(
                [x509.DNSName(name), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
            ),
            critical=False,
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    return path
