"""The header by which an authenticating proxy names the signed-in person."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection

from chatproject.lib.server.asgi_types import Application, Receive, Scope, Send
from chatproject.lib.server.proxies import address_in

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

SCOPE_KEY = "trusted_identity"


def take_identity(application: Application, name: str, proxies: Collection[Network]) -> Application:
    """Move the header into `scope["trusted_identity"]` if a trusted proxy sent it once; drop it otherwise.

    Wraps `trust_proxies`, which replaces the address of the peer. All spellings of the name are dropped: a program
    that reads `X_Forwarded_Email` as `X-Forwarded-Email` would take a visitor's header for the proxy's.
    """
    own = name.lower().encode("ascii")
    spelled = own.replace(b"_", b"-")

    async def identified(scope: Scope, receive: Receive, send: Send) -> None:
        headers: list[tuple[bytes, bytes]] = list(scope["headers"])
        kept = [one for one in headers if one[0].lower().replace(b"_", b"-") != spelled]
        values = [value for header, value in headers if header.lower() == own]
        scope = {**scope, "headers": kept}
        scope.pop(SCOPE_KEY, None)
        # Several, of whatever spelling: one of them may be the visitor's.
        if len(values) == 1 and len(headers) - len(kept) == 1 and _is_trusted(scope, proxies):
            scope[SCOPE_KEY] = values[0].decode("utf-8", "replace").strip()
        await application(scope, receive, send)

    return identified


def _is_trusted(scope: Scope, proxies: Collection[Network]) -> bool:
    address = address_in(str((scope.get("client") or [""])[0]))
    return bool(address) and any(ipaddress.ip_address(address) in one for one in proxies)
