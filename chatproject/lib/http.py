"""The type of a signed-in user's request, and the address of its client."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

from django.http import HttpRequest

if TYPE_CHECKING:
    # For the type checker only: lib is a layer below accounts.
    from accounts.models import User


class Request(HttpRequest):
    """A request of a signed-in user: accounts.access refuses all others before the view."""

    user: User


def client_address(request: HttpRequest) -> str:
    """Return the IP address of the client, or an empty text when the server has none.

    No header is read here, since any client can write one: with TRUST_PROXY the server has already
    put the address that the first trusted proxy appended in the place of the last proxy's own
    (chatproject.lib.server.proxies).
    """
    return str(request.META.get("REMOTE_ADDR") or "")


def client_network(request: HttpRequest) -> str:
    """Return the part of the client's address that limits count by; see `network_of`."""
    return network_of(client_address(request))


def network_of(text: str) -> str:
    """Return the part of an address that limits count by.

    An IPv4 address, also one that is written as IPv6, or the /64 of an IPv6 address: a client may
    choose freely among the addresses of its /64.
    """
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return "unknown"
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ipaddress.IPv6Network((int(address), 64), strict=False))
    return str(address)
