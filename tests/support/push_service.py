"""A push service with one browser: it receives messages, checks their token, and decrypts them."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from chat.push.encryption import CURVE, decode, encode, point


@dataclass
class PushService:
    """Answers with `statuses` in their order, then with 201; keeps what it received."""

    address: str
    statuses: list[int] = field(default_factory=list)
    requests: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    auth: bytes = field(default_factory=lambda: os.urandom(16))
    key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(CURVE))

    @property
    def subscription(self) -> dict[str, str]:
        """The fields that a page posts after the browser has subscribed."""
        return {
            "endpoint": f"http://{self.address}/push/1",
            "p256dh": encode(point(self.key.public_key())),
            "auth": encode(self.auth),
        }

    @property
    def messages(self) -> list[Any]:
        """The contents of the received messages."""
        return [json.loads(self.decrypt(body)) for _headers, body in self.requests]

    def decrypt(self, body: bytes) -> bytes:
        """Return the text of a body, as a browser does (RFC 8291, 3.4; RFC 8188, 2)."""
        salt, length = body[:16], body[20]
        sender, record = body[21 : 21 + length], body[21 + length :]
        public = ec.EllipticCurvePublicKey.from_encoded_point(CURVE, sender)
        shared = self.key.exchange(ec.ECDH(), public)
        ours = point(self.key.public_key())
        material = derive(shared, self.auth, b"WebPush: info\0" + ours + sender, 32)
        key = derive(material, salt, b"Content-Encoding: aes128gcm\0", 16)
        nonce = derive(material, salt, b"Content-Encoding: nonce\0", 12)
        text, delimiter, padding = AESGCM(key).decrypt(nonce, record, None).rpartition(b"\x02")
        assert (delimiter, padding.strip(b"\0")) == (b"\x02", b"")
        return text


def claims_of(authorization: str) -> dict[str, Any]:
    """Return the claims of a VAPID header. Raises InvalidSignature."""
    token, key = (
        part.split("=", 1)[1] for part in authorization.removeprefix("vapid ").split(", ")
    )
    signed, _dot, signature = token.rpartition(".")
    raw = decode(signature)
    numbers = (int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big"))
    public = ec.EllipticCurvePublicKey.from_encoded_point(CURVE, decode(key))
    public.verify(encode_dss_signature(*numbers), signed.encode(), ec.ECDSA(SHA256()))
    claims: dict[str, Any] = json.loads(decode(signed.split(".")[1]))
    return claims


def derive(material: bytes, salt: bytes, info: bytes, length: int) -> bytes:
    return HKDF(algorithm=SHA256(), length=length, salt=salt, info=info).derive(material)


@contextmanager
def push_service() -> Iterator[PushService]:
    """A push service at a local port."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            service.requests.append((dict(self.headers), body))
            self.send_response(service.statuses.pop(0) if service.statuses else 201)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Write nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    service = PushService(f"127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield service
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
