"""The header of an authenticating proxy: from whom and in which spelling it counts."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

import pytest

from chatproject.lib.server.identity_header import take_identity

ADA, EVE = b"ada@example.org", b"eve@example.org"
NAME, PROXY = b"x-forwarded-email", "10.0.0.7"


@pytest.mark.parametrize(
    ("peer", "lines", "expected"),
    [
        (PROXY, [(NAME, ADA)], "ada@example.org"),
        ("::ffff:10.0.0.7", [(NAME, ADA)], "ada@example.org"),
        ("2001:db8::5", [(NAME, ADA)], "ada@example.org"),
        (PROXY, [(b"X-Forwarded-Email", b" \xc3\xa4@example.org ")], "ä@example.org"),
        ("10.0.0.8", [(NAME, ADA)], None),
        ("", [(NAME, ADA)], None),
        (None, [(NAME, ADA)], None),
        (PROXY, [(NAME, ADA), (NAME, EVE)], None),
        (PROXY, [(NAME, ADA), (b"X_Forwarded_Email", EVE)], None),
        (PROXY, [(b"x_forwarded-email", EVE)], None),
        (PROXY, [], None),
    ],
)
async def test_header_counts_once_from_trusted_proxies(peer, lines, expected):
    scopes: list[Any] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        scopes.append(scope)

    proxies = [ip_network("10.0.0.7"), ip_network("2001:db8::/64")]
    taken = take_identity(application, "X-Forwarded-Email", proxies)
    for kind in ("http", "websocket"):
        scope: Any = {
            "type": kind,
            "client": None if peer is None else [peer, 1],
            "headers": [(b"host", b"testserver"), *lines],
            "trusted_identity": "forged",
        }
        await taken(scope, None, None)  # type: ignore[arg-type] # never called
        assert scopes[-1].get("trusted_identity") == expected
        assert scopes[-1]["headers"] == [(b"host", b"testserver")]
