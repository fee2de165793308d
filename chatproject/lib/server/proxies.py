"""The headers of trusted proxies in front: the client's address and scheme."""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Iterable

from chatproject.lib.server.asgi_types import Application, Receive, Scope, Send

logger = logging.getLogger(__name__)

FORWARDED = b"x-forwarded-"
FORWARDED_FOR = b"x-forwarded-for"
FORWARDED_PROTO = b"x-forwarded-proto"
FORWARDED_PREFIX = b"x-forwarded-prefix"


def trust_proxies(application: Application, hops: int) -> Application:
    """Take the client's address and scheme from the headers of this many proxies in front.

    Each proxy appends the address of its own client to X-Forwarded-For. So the last `hops` entries
    come from the proxies, and the entries before them from the client, which can write anything: the
    client's address is the first of the last `hops`. Where X-Forwarded-Proto has several values, it
    is read in the same way. Afterwards that header has the scheme alone, for all later readers, and the
    Host no default port.
    """
    warned: set[str] = set()

    def warn_once(message: str, value: str) -> None:
        if message not in warned:
            warned.add(message)
            logger.warning(message, value[:200], hops)

    async def proxied(scope: Scope, receive: Receive, send: Send) -> None:
        headers: list[tuple[bytes, bytes]] = list(scope["headers"])
        # An unreadable entry hides the address: the proxy behind it is the best that is known.
        for entry in entries(headers, FORWARDED_FOR)[-hops:]:
            if address := address_in(entry):
                scope["client"] = [address, 0]
                break
        if schemes := entries(headers, FORWARDED_PROTO):
            is_secure = is_secure_scheme(schemes[-hops:][0])
            if not is_secure and is_secure_scheme(schemes[0]):
                warn_once(
                    "X-Forwarded-Proto is %r, of more proxies than TRUST_PROXY=%d: the request counts"
                    " as http. Set TRUST_PROXY to the number of proxies in front.",
                    ",".join(schemes),
                )
            if scope["type"] == "websocket":
                scope["scheme"] = "wss" if is_secure else "ws"
            else:
                scope["scheme"] = "https" if is_secure else "http"
            # `$host:$server_port` of a proxy: browsers leave the default port out of an Origin.
            default_port = b":443" if is_secure else b":80"
            scope["headers"] = [
                *(
                    (name, value.removesuffix(default_port) if name == b"host" else value)
                    for name, value in headers
                    if name != FORWARDED_PROTO
                ),
                (FORWARDED_PROTO, b"https" if is_secure else b"http"),
            ]
        for prefix in entries(headers, FORWARDED_PREFIX):
            if prefix.strip("/"):
                warn_once(
                    "A proxy serves the site below the path %r (TRUST_PROXY=%d). Links will not work:"
                    " give the site a host name of its own.",
                    prefix,
                )
        await application(scope, receive, send)

    return proxied


def warn_of_proxies(application: Application) -> Application:
    """Log once that a proxy on this machine or in its private network sends requests: TRUST_PROXY is 0.

    Its headers stay unread: without a proxy any client could write them.
    """
    has_warned = False

    async def direct(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal has_warned
        if not has_warned and is_from_proxy(scope):
            has_warned = True
            logger.warning(
                "A proxy at %s sends X-Forwarded headers, but TRUST_PROXY is 0: all visitors share the"
                " limits of its address, and with HTTPS=1 pages redirect for ever. Set TRUST_PROXY to"
                " the number of proxies in front.",
                scope["client"][0],
            )
        await application(scope, receive, send)

    return direct


def is_from_proxy(scope: Scope) -> bool:
    """Return whether a request has a header of proxies and comes from a private or loopback address."""
    # `doctor` sends such a header itself, to /health/seen.
    if not scope.get("client") or scope["path"].startswith("/health"):
        return False
    if not any(name.startswith(FORWARDED) for name, _ in scope["headers"]):
        return False
    address = address_in(scope["client"][0])
    return bool(address) and ipaddress.ip_address(address).is_private


def entries(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> list[str]:
    """Return the entries of all header lines with a name, in order and without empty ones."""
    lines = (value.decode("latin-1") for header, value in headers if header == name)
    words = (word.strip(' \t"') for line in lines for word in line.split(","))
    return [word for word in words if word]


def is_secure_scheme(scheme: str) -> bool:
    """Return whether a scheme is https; some proxies write wss for a WebSocket."""
    return scheme.lower() in ("https", "wss")


def address_in(entry: str) -> str:
    """Return the address in an entry, without port, brackets and zone; "" when there is none.

    Proxies write `192.0.2.1`, `192.0.2.1:80`, `2001:db8::1`, `[2001:db8::1]`, `[2001:db8::1]:80` and
    `2001:db8:0:0:0:0:0:1:80`.
    """
    if entry.startswith("["):
        inside, _, rest = entry[1:].partition("]")
        candidates = [inside] if not rest.strip(":").strip("0123456789") else []
    else:
        before, _, port = entry.rpartition(":")
        candidates = [entry, before] if port.isdecimal() or not port else [entry]
    for candidate in candidates:
        try:
            address = ipaddress.ip_address(candidate.partition("%")[0])
        except ValueError:
            continue
        return str(getattr(address, "ipv4_mapped", None) or address)
    return ""
