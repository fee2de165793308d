"""Encryption of secrets at rest: Fernet tokens (AES in CBC mode with HMAC) with keys that rotate.

The first of ENCRYPTION_KEYS encrypts, all of them decrypt. Keys derived from SECRET_KEY and its
fallbacks come last: alone while ENCRYPTION_KEYS is unset, and still decrypting after it was set, until
`manage.py rotate_keys` has encrypted everything with the first key.
"""

from __future__ import annotations

import base64
from functools import lru_cache

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from django.conf import settings


class Undecryptable(Exception):
    """A secret was encrypted with a key that is not configured."""


def encrypt(text: str) -> str:
    """Return a text as a token, encrypted with the first key; an empty text stays empty."""
    return _fernet().encrypt(text.encode()).decode() if text else ""


def decrypt(token: str) -> str:
    """Return the text of a token; an empty one is empty. Raises Undecryptable."""
    try:
        return _fernet().decrypt(token.encode()).decode() if token else ""
    except InvalidToken:
        raise Undecryptable from None


def rotate(token: str) -> str:
    """Return a token with the same text, encrypted with the first key. Raises Undecryptable."""
    return encrypt(decrypt(token))


def shown(secret: str) -> str:
    """Return a secret as pages may show it: its last four characters, if it is long enough."""
    if not secret:
        return "not set"
    return f"set, ends in …{secret[-4:]}" if len(secret) >= 12 else "set"


def _fernet() -> MultiFernet:
    secret_keys = (settings.SECRET_KEY, *settings.SECRET_KEY_FALLBACKS)
    return _of_keys((*settings.ENCRYPTION_KEYS, *secret_keys))


@lru_cache(maxsize=4)
def _of_keys(keys: tuple[str, ...]) -> MultiFernet:
    return MultiFernet([Fernet(_derived(key)) for key in keys])


def _derived(key: str) -> bytes:
    """Return a Fernet key for a random text of any form."""
    hkdf = HKDF(algorithm=SHA256(), length=32, salt=None, info=b"parley: secrets at rest")
    return base64.urlsafe_b64encode(hkdf.derive(key.encode()))
