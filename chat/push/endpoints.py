"""The addresses of push services: chosen by browsers, so that a request to one must not reach this network.

An endpoint has https, the usual port and a name, and its host must have public addresses alone. The addresses
are checked when they are used (`GuardedResolver`), not before, so that a name cannot change between the two.
PUSH_HOSTS excepts hosts, for a push service in the own network.
"""

from __future__ import annotations

import ipaddress
import socket
from urllib.parse import SplitResult, urlsplit

from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver
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


class GuardedResolver(AbstractResolver):
    """Resolves names to public addresses; a name with another one cannot be contacted."""

    def __init__(self) -> None:
        self._resolver = ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Return the addresses of a host. Raises OSError for one in a private network."""
        found = await self._resolver.resolve(host, port, family)
        if f"{host}:{port}" in settings.PUSH_HOSTS or host in settings.PUSH_HOSTS:
            return found
        for result in found:
            address = ipaddress.ip_address(result["host"].partition("%")[0])
            mapped = getattr(address, "ipv4_mapped", None) or address
            if not mapped.is_global or mapped.is_multicast:
                raise OSError(f"{host} has the address {address}, which is not public")
        return found

    async def close(self) -> None:
        await self._resolver.close()
