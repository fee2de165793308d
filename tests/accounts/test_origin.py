"""The page that opens a socket: one of this site, compared like the origin of a form."""

from __future__ import annotations

from typing import Any

import pytest

from accounts import sockets
from chatproject.lib import origins

OWN = {"host": "chat.example.org", "origin": "http://chat.example.org"}


@pytest.fixture(autouse=True)
def site(settings) -> Any:
    settings.ALLOWED_HOSTS = ["chat.example.org", "[::1]", "127.0.0.1"]
    settings.CSRF_TRUSTED_ORIGINS = []
    settings.SECURE_PROXY_SSL_HEADER = None
    return settings


async def is_opened(scheme: str = "ws", **headers: str | list[str]) -> bool:
    """Whether a handshake with these headers opens a socket; else it is refused with a 403."""
    opened = []
    sent = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        opened.append(scope)

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "websocket",
        "path": "/ws/v1/",
        "raw_path": b"/ws/v1/",
        "query_string": b"",
        "scheme": scheme,
        "server": ["10.0.0.9", 8000],
        "headers": [
            (name.replace("_", "-").encode(), value.encode("latin1"))
            for name, values in headers.items()
            for value in ([values] if isinstance(values, str) else values)
        ],
    }
    await sockets.from_own_pages(application)(scope, receive, send)
    assert sent == ([] if opened else [{"type": "websocket.close"}])
    return bool(opened)


@pytest.mark.parametrize(
    ("scheme", "host", "origin", "expected"),
    [
        ("ws", "chat.example.org", "http://chat.example.org", True),
        ("wss", "chat.example.org", "https://chat.example.org", True),
        ("ws", "chat.example.org:8000", "http://chat.example.org:8000", True),
        ("ws", "127.0.0.1:8000", "http://127.0.0.1:8000", True),
        ("ws", "[::1]:8000", "http://[::1]:8000", True),
        ("ws", "chat.example.org", "HTTP://Chat.Example.org", True),
        # A default port may be written or left out, on both sides.
        ("ws", "chat.example.org:80", "http://chat.example.org", True),
        ("wss", "chat.example.org", "https://chat.example.org:443", True),
        # Another scheme, port or host.
        ("ws", "chat.example.org", "https://chat.example.org", False),
        ("wss", "chat.example.org", "http://chat.example.org", False),
        ("ws", "chat.example.org:8000", "http://chat.example.org", False),
        ("ws", "chat.example.org:8000", "http://chat.example.org:8001", False),
        ("ws", "chat.example.org", "http://chat.example.org:443", False),
        ("wss", "chat.example.org:80", "https://chat.example.org", False),
        ("ws", "chat.example.org", "http://127.0.0.1", False),
        ("ws", "chat.example.org", "http://evil.example.org", False),
        ("ws", "chat.example.org", "http://chat.example.org.evil.example", False),
        ("ws", "chat.example.org", "http://evilchat.example.org", False),
        # A host that is not ours, although both agree.
        ("ws", "evil.example", "http://evil.example", False),
        # No origin at all, or something else.
        ("ws", "chat.example.org", "null", False),
        ("ws", "chat.example.org", "", False),
        ("ws", "chat.example.org", "chat.example.org", False),
        ("ws", "chat.example.org", "//chat.example.org", False),
        ("ws", "chat.example.org", "ws://chat.example.org", False),
        ("ws", "chat.example.org", "file://chat.example.org", False),
        ("ws", "chat.example.org", "http://chat.example.org/", False),
        ("ws", "chat.example.org", "http://chat.example.org/path", False),
        ("ws", "chat.example.org", "http://chat.example.org:port", False),
        ("ws", "chat.example.org", "http://chat.example.org:99999", False),
        ("ws", "chat.example.org", "http://user@chat.example.org", False),
        ("ws", "chat.example.org", "http://[chat.example.org", False),
        ("ws", "chat.example.org", "http://chat.example.org http://evil.example", False),
        ("ws", "chat.example.org", "\xff\xfe", False),
    ],
)
async def test_origin_is_compared_with_scheme_and_port(scheme, host, origin, expected):
    assert await is_opened(scheme, host=host, origin=origin) is expected


async def test_socket_without_one_origin_is_refused():
    assert not await is_opened(host=OWN["host"])
    assert not await is_opened(host=OWN["host"], origin=[OWN["origin"], OWN["origin"]])
    assert not await is_opened(origin=OWN["origin"])
    assert await is_opened(**OWN)


@pytest.mark.parametrize(
    ("origin", "expected"),
    [
        ("https://pages.example.com", True),
        ("https://pages.example.com:443", True),
        ("https://a.b.wild.example", True),
        ("https://wild.example", True),
        ("http://local.example:8080", True),
        ("http://pages.example.com", False),
        ("https://pages.example.com:8443", False),
        ("https://a.pages.example.com", False),
        ("http://a.wild.example", False),
        ("https://a.wild.example:8443", False),
        ("https://notwild.example", False),
        ("http://local.example", False),
    ],
)
async def test_trusted_origins_may_open_sockets(site, origin, expected):
    site.CSRF_TRUSTED_ORIGINS = [
        "https://pages.example.com",
        "https://*.wild.example",
        "http://local.example:8080",
    ]
    assert await is_opened(host=OWN["host"], origin=origin) is expected


@pytest.mark.parametrize(
    ("trusts_proxy", "forwarded", "origin", "expected"),
    [
        (True, "https", "https://chat.example.org", True),
        (True, "https", "http://chat.example.org", False),
        (True, "http", "http://chat.example.org", True),
        (True, "http", "https://chat.example.org", False),
        (False, "https", "https://chat.example.org", False),
        (False, "https", "http://chat.example.org", True),
    ],
)
async def test_scheme_of_a_trusted_proxy_counts(site, trusts_proxy, forwarded, origin, expected):
    if trusts_proxy:  # as with TRUST_PROXY=1
        site.SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
    opened = await is_opened(host=OWN["host"], origin=origin, x_forwarded_proto=forwarded)
    assert opened is expected


async def test_content_type_of_a_handshake_is_ignored():
    assert await is_opened(**OWN, content_type="text/plain; x*=nope''y")


async def test_refused_socket_names_the_setting(caplog):
    origins._reported.clear()
    for _ in range(2):
        assert not await is_opened(host=OWN["host"], origin="https://chat.example.org")
    assert caplog.text.count("TRUST_PROXY=1") == 1
