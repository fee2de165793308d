"""The encryption of a push message for one browser (RFC 8291), in the coding `aes128gcm` (RFC 8188)."""

from __future__ import annotations

import base64
import binascii
import os
import struct

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

CURVE = ec.SECP256R1()
RECORD_BYTES = 4096  # a push message is one record
MAX_TEXT_BYTES = 3_000  # push services accept 4,096 bytes of body
POINT_BYTES, AUTH_BYTES = 65, 16


class InvalidKeys(ValueError):
    """The keys of a browser are no point of P-256 and 16 bytes."""


def encrypt(
    text: bytes,
    *,
    p256dh: str,
    auth: str,
    salt: bytes | None = None,
    key: ec.EllipticCurvePrivateKey | None = None,
) -> bytes:
    """Return the body of a request: `text` encrypted with the keys of a browser (base64url).

    Salt and key are random, except in tests with the RFC's values. Raises InvalidKeys, and ValueError for a
    text of more than MAX_TEXT_BYTES.
    """
    if len(text) > MAX_TEXT_BYTES:
        raise ValueError(f"The text has {len(text)} bytes, more than {MAX_TEXT_BYTES}.")
    receiver, secret = browser_keys(p256dh, auth)
    salt = salt or os.urandom(16)
    key = key or ec.generate_private_key(CURVE)
    ours, theirs = point(key.public_key()), point(receiver)
    shared = key.exchange(ec.ECDH(), receiver)
    material = _derive(shared, secret, b"WebPush: info\0" + theirs + ours, 32)
    content_key = _derive(material, salt, b"Content-Encoding: aes128gcm\0", 16)
    nonce = _derive(material, salt, b"Content-Encoding: nonce\0", 12)
    # 2 is the delimiter of the last record.
    record = AESGCM(content_key).encrypt(nonce, text + b"\x02", None)
    return salt + struct.pack("!LB", RECORD_BYTES, len(ours)) + ours + record


def browser_keys(p256dh: str, auth: str) -> tuple[ec.EllipticCurvePublicKey, bytes]:
    """Return the public key and the secret of a browser from their base64url. Raises InvalidKeys."""
    try:
        secret, encoded = decode(auth), decode(p256dh)
        receiver = ec.EllipticCurvePublicKey.from_encoded_point(CURVE, encoded)
    except (ValueError, binascii.Error) as error:
        raise InvalidKeys from error
    if len(secret) != AUTH_BYTES or len(encoded) != POINT_BYTES:
        raise InvalidKeys
    return receiver, secret


def point(key: ec.EllipticCurvePublicKey) -> bytes:
    """Return a public key as an uncompressed point, 65 bytes."""
    return key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)


def encode(data: bytes) -> str:
    """Return bytes as base64url without padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def decode(text: str) -> bytes:
    """Return the bytes of a base64url text, with or without padding. Raises ValueError."""
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)


def _derive(material: bytes, salt: bytes, info: bytes, length: int) -> bytes:
    return HKDF(algorithm=SHA256(), length=length, salt=salt, info=info).derive(material)
