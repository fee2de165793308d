"""Requests to addresses that others name: attacks on hosts, names, sizes, times and types."""

from __future__ import annotations

import asyncio
import gzip
import ipaddress
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from chat.guarded.client import FetchError, Policy, fetch
from chat.guarded.hosts import is_listed

LOCAL = (ipaddress.ip_network("127.0.0.0/8"),)

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def page(body: bytes, *fields: str, status: str = "200 OK", kind: str = "text/plain") -> bytes:
    head = [f"HTTP/1.1 {status}", f"Content-Type: {kind}", "Connection: close", *fields]
    return "\r\n".join([*head, f"Content-Length: {len(body)}", "", ""]).encode() + body


def redirect(to: str) -> bytes:
    return page(b"", f"Location: {to}", status="302 Found")


@asynccontextmanager
async def serving(*answers: bytes | Handler) -> AsyncIterator[tuple[int, list[bytes]]]:
    """Serve one answer after another, the last one again and again; yield the port and the requests."""
    left, requests = list(answers), []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests.append(await reader.readuntil(b"\r\n\r\n"))
        answer = left.pop(0) if len(left) > 1 else left[0]
        try:
            if callable(answer):
                await answer(reader, writer)
            else:
                writer.write(answer)
                await writer.drain()
        except ConnectionError:
            pass  # the client has read enough
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1], requests


def policy(port: int, **changes: Any) -> Policy:
    listed = (f"127.0.0.1:{port}", f"localhost:{port}", f"pages.example:{port}", "*")
    return replace(Policy(hosts=listed, networks=LOCAL, seconds=5), **changes)


async def refusal(url: str, of: Policy) -> str:
    with pytest.raises(FetchError) as caught:
        await fetch(url, of)
    assert str(caught.value)
    return caught.value.code


async def test_redirects_within_the_list_are_followed() -> None:
    async with serving(redirect("/two"), page("Grüße".encode())) as (port, requests):
        answer = await fetch(f"http://localhost:{port}/one#part", policy(port))
    assert (answer.body.decode(), answer.url) == ("Grüße", f"http://localhost:{port}/two")
    assert [one.split()[1] for one in requests] == [b"/one", b"/two"]


async def test_headers_stay_at_their_origin() -> None:
    async with (
        serving(page(b"ok")) as (other, seen),
        serving(redirect(f"http://127.0.0.1:{other}/")) as (port, requests),
    ):
        of = policy(port, hosts=(f"127.0.0.1:{port}", f"127.0.0.1:{other}"))
        await fetch(f"http://127.0.0.1:{port}/", of, headers={"Authorization": "secret"})
    assert b"secret" in requests[0]
    assert b"secret" not in seen[0]


@pytest.mark.parametrize(
    ("location", "code"),
    [
        ("http://127.0.0.2/", "private"),
        ("http://[::1]/", "private"),
        ("http://[::ffff:127.0.0.1]/", "private"),
        ("http://169.254.169.254/latest/meta-data/", "private"),
        ("http://[64:ff9b::7f00:1]/", "private"),
        ("http://2130706433/", "bad_address"),
        ("http://0x7f.1/", "bad_address"),
        ("http://example.org:25/", "not_listed"),
        ("http://example.org:0/", "bad_address"),
        ("http://user:word@example.org/", "credentials"),
        ("file:///etc/passwd", "bad_address"),
        ("gopher://example.org/", "bad_address"),
    ],
)
async def test_redirects_elsewhere_are_refused(location: str, code: str) -> None:
    async with serving(redirect(location)) as (port, requests):
        of = policy(port, networks=(), exempt=(f"localhost:{port}",))
        assert await refusal(f"http://localhost:{port}/", of) == code
    assert len(requests) == 1


@pytest.mark.parametrize(
    "addresses",
    [["127.0.0.1"], ["93.184.216.34", "127.0.0.1"], ["10.0.0.1"], ["fd00::1"], ["100.64.0.1"]],
)
async def test_names_of_private_hosts_are_refused(
    addresses: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def look_up(_host: str, port: int, **_options: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, port)) for one in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    async with serving(page(b"inside")) as (port, requests):
        of = policy(port, networks=())
        assert await refusal(f"http://pages.example:{port}/", of) == "private"
    assert not requests


async def test_rebound_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    # Permitted when it is first resolved, another one of this machine when it is redirected to itself.
    answers = ["127.0.0.1", "127.0.0.2"]

    def look_up(_host: str, port: int, **_options: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (answers.pop(0), port))]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    async with serving(redirect("/again")) as (port, requests):
        of = policy(port, networks=(ipaddress.ip_network("127.0.0.1"),))
        assert await refusal(f"http://pages.example:{port}/", of) == "private"
    assert len(requests) == 1


async def test_endless_redirects_end() -> None:
    async with serving(redirect("/again")) as (port, requests):
        assert await refusal(f"http://localhost:{port}/", policy(port)) == "too_many_redirects"
    assert len(requests) == 6


async def test_huge_and_compressed_bodies_are_cut() -> None:
    async def pour(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n")
        for _ in range(1_000):
            writer.write(b"x" * 100_000)
            await writer.drain()

    bomb = page(gzip.compress(b"y" * 5_000_000), "Content-Encoding: gzip")
    async with serving(pour, bomb) as (port, _):
        of = policy(port, max_bytes=10_000)
        for letter in (b"x", b"y"):
            answer = await fetch(f"http://localhost:{port}/", of)
            assert (answer.body, answer.is_cut) == (letter * 10_000, True)


async def test_slow_body_times_out() -> None:
    async def drip(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n")
        while not writer.is_closing():
            writer.write(b".")
            await writer.drain()
            await asyncio.sleep(0.02)

    async with serving(drip) as (port, _):
        assert await refusal(f"http://localhost:{port}/", policy(port, seconds=0.2)) == "timeout"


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (page(b"\x7fELF", kind="application/octet-stream"), "not_text"),
        (page(b"x", "Content-Encoding: br"), "bad_answer"),
        (page(b"no gzip at all", "Content-Encoding: gzip"), "bad_answer"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "bad_answer"),
        (b"", "unreachable"),
    ],
)
async def test_other_answers_are_refused(answer: bytes, code: str) -> None:
    async with serving(answer) as (port, _):
        of = policy(port, types=("text/", "application/json"))
        assert await refusal(f"http://localhost:{port}/", of) == code


def test_hosts_are_listed_by_name_and_port() -> None:
    patterns = ["example.org", "*.wiki.example", "docs.example:8443"]
    listed = [
        ("Example.org.", 443),
        ("en.wiki.example", 80),
        ("docs.example", 8443),
    ]
    others = [
        ("www.example.org", 443),
        ("wiki.example", 443),
        ("evilwiki.example", 443),
        ("docs.example", 443),
        ("example.org", 22),
    ]
    assert [is_listed(*one, patterns) for one in listed] == [True] * 3
    assert not any(is_listed(*one, patterns) for one in others)
