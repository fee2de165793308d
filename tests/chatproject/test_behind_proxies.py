"""The served site behind a CDN and a proxy: https, one limit for each visitor, its own pages."""

from __future__ import annotations

import asyncio
import http.client
from collections.abc import Iterator
from urllib.parse import urlencode

import pytest
import websockets
from websockets.typing import Origin

from tests.support.fake_llm import FakeLLM
from tests.support.stack import Stack

HOST = "chat.example.org"
FROM_TWO_PROXIES = {"Host": HOST, "X-Forwarded-Proto": "https,http"}

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("valkey_url"),
    pytest.mark.timeout(120),
]


@pytest.fixture
def site(provider: FakeLLM, server_folder) -> Iterator[Stack]:
    environment = {
        "HTTPS": "1",
        "TRUST_PROXY": "2",
        "ALLOWED_HOSTS": f"{HOST},127.0.0.1",
        "LIMIT_SIGN_IN": "2/hour",
    }
    with Stack(server_folder, provider_url=provider.url, environment=environment) as stack:
        stack.start("web")
        yield stack


def ask(site: Stack, method: str, path: str, form: dict[str, str], headers: dict[str, str]) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", site.port, timeout=30)
    token = "t" * 32
    body = urlencode({"csrfmiddlewaretoken": token, **form}) if form else None
    fields = {
        "Cookie": f"csrftoken={token}",
        "Content-Type": "application/x-www-form-urlencoded",
        **headers,
    }
    connection.request(method, path, body, fields)
    status = connection.getresponse().status
    connection.close()
    return status


def test_page_of_https_is_not_redirected_again(site: Stack):
    path = "/accounts/login/"
    assert ask(site, "GET", path, {}, FROM_TWO_PROXIES) == 200
    assert ask(site, "GET", path, {}, {"Host": HOST, "X-Forwarded-Proto": "http,http"}) == 301


def test_each_visitor_has_own_limits_behind_proxies(site: Stack):
    """The form's origin is https, as the request is."""

    def guess(visitor: str) -> int:
        headers = {
            **FROM_TWO_PROXIES,
            "Origin": f"https://{HOST}",
            "X-Forwarded-For": f"6.6.6.6, {visitor}, 198.51.100.1",
        }
        form = {"login": "a@example.org", "password": "wrong"}
        return ask(site, "POST", "/accounts/login/", form, headers)

    assert [guess("203.0.113.9:4711") for _ in range(3)] == [200, 200, 429]
    assert [guess("[2001:db8::9]:443") for _ in range(3)] == [200, 200, 429]
    assert guess("203.0.113.10") == 200


async def test_socket_of_https_is_opened(site: Stack):
    async def close_code(proto: str) -> int | None:
        async with websockets.connect(
            f"ws://{HOST}/ws/v1/",
            host="127.0.0.1",
            port=site.port,
            origin=Origin(f"https://{HOST}"),
            additional_headers={"X-Forwarded-Proto": proto},
        ) as socket:
            await socket.wait_closed()
            return socket.close_code

    assert await close_code("https,http") == 4401  # it lacks a session only
    assert await close_code("wss") == 4401
    with pytest.raises(websockets.InvalidStatus, match="403"):
        await close_code("http,https")
    assert "TRUST_PROXY=1" in await asyncio.to_thread(site.log, "web")
