"""VAPID (RFC 8292): the keys by which push services recognise this site, and its signed tokens.

The keys are derived from ENCRYPTION_KEYS and SECRET_KEY with its fallbacks, like the keys of lib.encryption:
nothing has to be generated or stored. A subscription is bound to the key that it was made with, which is found
again while the secret is among the configured ones.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import urlsplit

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from django.conf import settings

from chat.push.encryption import CURVE, encode, point

ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551  # of P-256
VALID_SECONDS = 12 * 60 * 60  # of a token; at most 24 hours are allowed


@dataclass(frozen=True, slots=True)
class Key:
    """A key pair; `public` is its public half in base64url, the browser's `applicationServerKey`."""

    private: ec.EllipticCurvePrivateKey
    public: str


def current() -> Key:
    """Return the key of new subscriptions."""
    return _keys()[0]


def find(public: str) -> Key | None:
    """Return the key of a subscription, or None after its secret was removed from the settings."""
    return next((key for key in _keys() if key.public == public), None)


def authorization(endpoint: str, key: Key, contact: str) -> str:
    """Return the header `Authorization` of a request to an endpoint; `contact` is a mailto: or https: URL."""
    parts = urlsplit(endpoint)
    claims = {
        "aud": f"{parts.scheme}://{parts.netloc}",
        "exp": int(time.time()) + VALID_SECONDS,
        "sub": contact,
    }
    signed = ".".join(
        encode(json.dumps(part).encode()) for part in ({"typ": "JWT", "alg": "ES256"}, claims)
    )
    r, s = decode_dss_signature(key.private.sign(signed.encode(), ec.ECDSA(SHA256())))
    token = f"{signed}.{encode(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"
    return f"vapid t={token}, k={key.public}"


def _keys() -> tuple[Key, ...]:
    secrets = (
        *settings.ENCRYPTION_KEYS,
        settings.SECRET_KEY,
        *settings.SECRET_KEY_FALLBACKS,
    )
    return tuple(_derived(secret) for secret in secrets)


@lru_cache(maxsize=16)
def _derived(secret: str) -> Key:
    # 16 bytes more than the order has, so that the remainder is as good as uniform.
    hkdf = HKDF(algorithm=SHA256(), length=48, salt=None, info=b"parley: web push")
    number = int.from_bytes(hkdf.derive(secret.encode()), "big") % (ORDER - 1) + 1
    private = ec.derive_private_key(number, CURVE)
    return Key(private, encode(point(private.public_key())))
