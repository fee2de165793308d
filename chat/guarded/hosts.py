"""Lists of permitted hosts: example.org, *.example.org, example.org:8443, or * for all public ones; the port * is any."""

from __future__ import annotations

from collections.abc import Iterable

PORTS = frozenset((80, 443))  # of hosts that are listed without a port


def is_listed(host: str, port: int, patterns: Iterable[str]) -> bool:
    """Return whether a host is in a list. A pattern without a port is for the usual ports of the web alone."""
    host = host.lower().removesuffix(".")
    for pattern in patterns:
        name, colon, number = pattern.rpartition(":") if ":" in pattern else (pattern, "", "")
        is_of_port = number in ("*", str(port)) if colon else port in PORTS
        if not is_of_port:
            continue
        name = name.lower()
        if name in ("*", host) or (name.startswith("*.") and host.endswith(name[1:])):
            return True
    return False
