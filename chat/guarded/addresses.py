"""The IP addresses that may be contacted; apart from resolver.py, since only workers need aiohttp."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

# NAT64, 6to4, IPv4-compatible and site-local addresses: all may lead to a host of this network.
TRANSLATED = [
    ipaddress.ip_network(one)
    for one in ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "::/96", "fec0::/10")
]


def is_permitted(text: str, networks: Collection[Network] = (), *, public: bool = True) -> bool:
    """Return whether an address is in one of the networks or, with `public`, a public one."""
    address = ipaddress.ip_address(text.partition("%")[0])
    mapped = getattr(address, "ipv4_mapped", None) or address
    if any(mapped in network for network in networks):
        return True
    if any(mapped in network for network in TRANSLATED):
        return False
    return public and mapped.is_global and not mapped.is_multicast
