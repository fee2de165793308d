"""The addresses of push services: chosen by browsers, so that a request to one must not reach this network.

An endpoint has https, the usual port and a name, and its host must have public addresses alone. The addresses
are checked when they are used (chat.guarded), not before, so that a name cannot change between the two.
PUSH_HOSTS excepts hosts, for a push service in the own network.
"""

from __future__ import annotations

import ipaddress
from urllib.parse import SplitResult, urlsplit

from django.conf import settings

from chatproject.lib.hosts import has_valid_host

MAX_CHARACTERS = 1_000


class Refused(ValueError):
    """An address is none of a public push service."""


def check(endpoint: str) -> None:
    """Raise Refused unless a request to this address may be made; names are resolved later."""
    try:
        parts = urlsplit(endpoint)
        port = parts.port
    except ValueError:
        raise Refused(endpoint) from None
    is_plain = endpoint.isascii() and endpoint.isprintable() and " " not in endpoint
    if not is_plain or len(endpoint) > MAX_CHARACTERS or not has_valid_host(parts):
        raise Refused(endpoint)
    if _is_excepted(parts):
        return
    if parts.scheme != "https" or "@" in parts.netloc or port not in (None, 443):
        raise Refused(endpoint)
    host = (parts.hostname or "").removesuffix(".")
    if "." not in host or _is_address(host):
        raise Refused(endpoint)


def _is_excepted(parts: SplitResult) -> bool:
    return parts.scheme in ("http", "https") and parts.netloc in settings.PUSH_HOSTS


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
