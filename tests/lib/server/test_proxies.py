"""The headers of proxies in front: which entry is believed, and in which spelling."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from chatproject.lib.server.proxies import trust_proxies, warn_of_proxies

PROXY = "10.0.0.1"  # the address from which the proxy connects


async def seen(
    *headers: tuple[str, str], hops: int = 1, kind: str = "http", requests: int = 1
) -> dict[str, Any]:
    """The scope that reaches the application behind so many proxies."""
    scopes: list[Any] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        scopes.append(scope)

    proxied = trust_proxies(application, hops)
    for _ in range(requests):
        scope = {
            "type": kind,
            "scheme": {"http": "http", "websocket": "ws"}[kind],
            "client": [PROXY, 4711],
            "headers": [
                (name.lower().encode(), value.encode("latin-1")) for name, value in headers
            ],
        }
        await proxied(scope, None, None)  # type: ignore[arg-type] # never called
    found: dict[str, Any] = scopes[-1]
    return found


@pytest.mark.parametrize(
    ("lines", "hops", "expected"),
    [
        (["203.0.113.9"], 1, "203.0.113.9"),
        # With port, brackets, quotes, zone and spaces.
        (["203.0.113.9:4711"], 1, "203.0.113.9"),
        (["203.0.113.9:"], 1, "203.0.113.9"),
        (["2001:db8::9"], 1, "2001:db8::9"),
        (["[2001:db8::9]"], 1, "2001:db8::9"),
        (["[2001:db8::9]:4711"], 1, "2001:db8::9"),
        (["2001:db8:0:0:0:0:0:9:4711"], 1, "2001:db8::9"),
        (['"[2001:db8::9]:4711"'], 1, "2001:db8::9"),
        (["fe80::9%eth0"], 1, "fe80::9"),
        (["::ffff:203.0.113.9"], 1, "203.0.113.9"),
        (["  203.0.113.9\t"], 1, "203.0.113.9"),
        # The client writes what it wants before the proxies' entries.
        (["6.6.6.6, 203.0.113.9"], 1, "203.0.113.9"),
        (["6.6.6.6,203.0.113.9"], 1, "203.0.113.9"),
        (["6.6.6.6, 7.7.7.7, 203.0.113.9:1, 198.51.100.1"], 2, "203.0.113.9"),
        (["6.6.6.6, 203.0.113.9, 198.51.100.1, 198.51.100.2"], 3, "203.0.113.9"),
        # Several lines are one list.
        (["6.6.6.6", "203.0.113.9"], 1, "203.0.113.9"),
        (["203.0.113.9", "198.51.100.1"], 2, "203.0.113.9"),
        # A request past the first proxy has fewer entries.
        (["203.0.113.9"], 2, "203.0.113.9"),
        # Empty entries are none.
        (["203.0.113.9,"], 1, "203.0.113.9"),
        ([", ,203.0.113.9, ,"], 1, "203.0.113.9"),
        (["203.0.113.9, , 198.51.100.1"], 2, "203.0.113.9"),
        (["", "203.0.113.9"], 1, "203.0.113.9"),
        ([""], 1, PROXY),
        ([" , "], 1, PROXY),
        ([], 1, PROXY),
        # Where an entry hides the address, the proxy that wrote it is known; never the client's word.
        (["unknown"], 1, PROXY),
        (["6.6.6.6, unknown"], 1, PROXY),
        (["6.6.6.6, _hidden, 198.51.100.1"], 2, "198.51.100.1"),
        (["203.0.113.999"], 1, PROXY),
        (["203.0.113.9:port"], 1, PROXY),
        (["[2001:db8::9"], 1, "2001:db8::9"),
        (["[2001:db8::9]x"], 1, PROXY),
        (["localhost"], 1, PROXY),
        (["\xff\xfe"], 1, PROXY),
    ],
)
@pytest.mark.parametrize("kind", ["http", "websocket"])
async def test_client_is_the_one_of_the_first_trusted_proxy(lines, hops, expected, kind):
    headers = [("X-Forwarded-For", line) for line in lines]
    assert (await seen(*headers, hops=hops, kind=kind))["client"][0] == expected


@pytest.mark.parametrize(
    ("lines", "hops", "is_secure"),
    [
        (["https"], 1, True),
        (["HTTPS "], 1, True),
        (['"https"'], 1, True),
        (["wss"], 1, True),
        (["http"], 1, False),
        (["ws"], 1, False),
        (["httpsx"], 1, False),
        ([""], 1, False),
        ([], 1, False),
        # The client speaks https to a first proxy, which speaks http to a second one.
        (["https,http"], 2, True),
        (["https , http"], 2, True),
        (["https", "http"], 2, True),
        (["http, https, http"], 2, True),
        (["https, http, http"], 2, False),
        # A proxy that replaces the header leaves one value.
        (["https"], 2, True),
        (["http"], 2, False),
        # With one proxy the value before the last one is the client's.
        (["https,http"], 1, False),
        (["http,https"], 1, True),
    ],
)
@pytest.mark.parametrize("kind", ["http", "websocket"])
async def test_scheme_is_the_one_of_the_first_trusted_proxy(lines, hops, is_secure, kind):
    headers = [("X-Forwarded-Proto", line) for line in lines]
    scope = await seen(*headers, hops=hops, kind=kind)
    assert scope["scheme"] == {"http": "http", "websocket": "ws"}[kind] + "s" * is_secure
    # Django reads the header again.
    left = [value for name, value in scope["headers"] if name == b"x-forwarded-proto"]
    expected = [b"https" if is_secure else b"http"] if any(lines) else [b""] * len(lines)
    assert left == expected


@pytest.mark.parametrize(
    ("scheme", "host", "expected"),
    [
        ("https", "chat.example.org:443", "chat.example.org"),
        ("http", "chat.example.org:80", "chat.example.org"),
        ("https", "[2001:db8::443]", "[2001:db8::443]"),
        ("https", "chat.example.org:80", "chat.example.org:80"),
        ("https", "chat.example.org:8443", "chat.example.org:8443"),
    ],
)
async def test_host_has_no_default_port(scheme, host, expected):
    """Django compares it with the Origin of a form, in which browsers leave that port out."""
    scope = await seen(("X-Forwarded-Proto", scheme), ("Host", host), hops=1, kind="http")
    assert dict(scope["headers"])[b"host"] == expected.encode()


async def test_missing_hop_and_prefix_are_logged_once(caplog):
    caplog.set_level(logging.WARNING)
    headers = [("X-Forwarded-Proto", "https,http"), ("X-Forwarded-Prefix", "/chat")]
    await seen(*headers, requests=3)
    assert caplog.text.count("Set TRUST_PROXY to the number of proxies") == 1
    assert caplog.text.count("below the path '/chat'") == 1
    caplog.clear()
    await seen(("X-Forwarded-Proto", "https"), ("X-Forwarded-Prefix", "/"))
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("client", "path", "header", "warnings"),
    [
        ("127.0.0.1", "/", "X-Forwarded-For", 1),
        ("::1", "/ws/", "X-Forwarded-Proto", 1),
        (PROXY, "/accounts/login/", "X-Forwarded-Host", 1),
        ("127.0.0.1", "/", "Forwarded", 0),  # which is not read
        ("127.0.0.1", "/health/seen", "X-Forwarded-For", 0),  # from doctor
        ("8.8.8.8", "/", "X-Forwarded-For", 0),  # any client can write it
    ],
)
async def test_uncounted_proxy_is_logged_once(caplog, client, path, header, warnings):
    reached: list[Any] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        reached.append(scope)

    direct = warn_of_proxies(application)
    scope = {"client": [client, 4711], "path": path, "headers": [(header.lower().encode(), b"x")]}
    for _ in range(3):
        await direct(scope, None, None)  # type: ignore[arg-type] # never called
    assert reached == [scope] * 3
    assert caplog.text.count("Set TRUST_PROXY") == warnings
