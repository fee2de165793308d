"""The resolver of requests to push services, apart from endpoints.py: only workers need aiohttp."""

from __future__ import annotations

import ipaddress
import socket

from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver
from django.conf import settings

# NAT64, 6to4, IPv4-compatible and site-local addresses: all may lead to a host of this network.
TRANSLATED = [
    ipaddress.ip_network(one)
    for one in ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "::/96", "fec0::/10")
]


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
            if not mapped.is_global or mapped.is_multicast or _is_translated(mapped):
                raise OSError(f"{host} has the address {address}, which is not public")
        return found

    async def close(self) -> None:
        await self._resolver.close()


def _is_translated(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    return any(address in network for network in TRANSLATED)
