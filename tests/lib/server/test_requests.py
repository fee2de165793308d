"""HTTP of the web server: limits, backpressure, failing applications, the access log."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import re
import signal
import time
from collections.abc import Callable

import pytest
from websockets.exceptions import InvalidHandshake, InvalidStatus

from tests.support.programs import PATIENCE
from tests.support.web_server import WebServer, close_code, receive_all

Start = Callable[..., WebServer]
CHUNKED = {"Transfer-Encoding": "chunked"}


def test_one_connection_carries_several_requests(server: WebServer):
    with contextlib.closing(server.client()) as connection:
        for _ in range(3):
            connection.request("GET", "/health")
            assert connection.getresponse().read() == b"ok"


def test_status_line_has_the_phrase_of_its_code(server: WebServer):
    for code, phrase in (
        (404, "Not Found"),
        (422, "Unprocessable Entity"),
        (429, "Too Many Requests"),
    ):
        with contextlib.closing(server.client()) as connection:
            connection.request("GET", f"/nothing?status={code}")
            assert connection.getresponse().reason == phrase


# --- Limits ---------------------------------------------------------------------------------------


def test_body_of_the_maximal_size_is_accepted(server: WebServer):
    body = b"x" * (2 * 1024 * 1024)
    assert server.request("POST", "/count", body=body) == (200, b"2097152")
    chunks = iter([body[:1_000_000], body[1_000_000:]])
    answer = server.request("POST", "/count", body=chunks, encode_chunked=True, headers=CHUNKED)
    assert answer == (200, b"2097152")


def test_larger_body_is_refused_before_the_application(start: Start):
    server = start(MAX_BODY_BYTES="100000")
    status, _ = server.request("POST", "/count", body=b"x" * 5_000_000)
    assert status == 413
    assert server.state()["requests"] == 0


def test_larger_body_reaches_the_addresses_of_uploads(start: Start):
    server = start(MAX_BODY_BYTES="100000")
    edit = "/messages/01934c4e-0000-7000-8000-000000000000/edit/"
    for path in ("/chats/import/", "/attachments/", "/c/new/", edit):
        assert server.request("POST", path, body=b"x" * 500_000)[0] != 413, path
    for path in ("/attachments/remove/", "/c/new/x", "/c/../attachments/x"):
        assert server.request("POST", path, body=b"x" * 500_000)[0] == 413, path
    chunks = iter([b"x" * 100_000] * 20)
    status, _ = server.request(
        "POST", "/chats/import/?a=b", body=chunks, encode_chunked=True, headers=CHUNKED
    )
    assert status != 413
    with server.raw() as connection:
        connection.sendall(
            b"POST /chats/import/ HTTP/1.1\r\nHost: localhost\r\nContent-Length: 101000001\r\n\r\n"
        )
        assert receive_all(connection).startswith(b"HTTP/1.1 413 ")


def test_larger_length_is_refused_before_its_body(server: WebServer):
    with server.raw() as connection:
        connection.sendall(
            b"POST /count HTTP/1.1\r\nHost: localhost\r\nContent-Length: 999999999\r\n"
            b"Expect: 100-continue\r\n\r\n"
        )
        answer = receive_all(connection)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"Content-Type: text/html" in answer
    assert b"larger than this server accepts" in answer


def test_chunks_above_the_limit_are_refused(server: WebServer):
    before = server.memory()
    chunks = iter([b"x" * 100_000] * 21)
    status, _ = server.request("POST", "/count", body=chunks, encode_chunked=True, headers=CHUNKED)
    assert status == 413
    assert server.memory() - before < 10_000_000


@pytest.mark.parametrize(
    "head",
    [
        f"GET /{'x' * 20_000} HTTP/1.1\r\nHost: localhost\r\n\r\n",
        f"GET /health HTTP/1.1\r\nHost: localhost\r\nCookie: {'x' * 20_000}\r\n\r\n",
        "GET /health HTTP/1.1\r\nHost: localhost\r\n" + "A: b\r\n" * 200 + "\r\n",
        "this is not HTTP\r\n\r\n",
    ],
    ids=["long path", "long header", "many headers", "garbage"],
)
def test_bad_head_is_answered_with_4xx(server: WebServer, head: str):
    with server.raw() as connection:
        connection.sendall(head.encode())
        assert re.match(rb"HTTP/1.1 4\d\d ", receive_all(connection))


@pytest.mark.parametrize("beginning", ["GET /", "GET /health HTTP/1.1\r\nCookie: "])
def test_endless_head_takes_no_memory(server: WebServer, beginning: str):
    before = server.memory()
    with server.raw() as connection:
        connection.sendall(beginning.encode())
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            for _ in range(300):
                connection.sendall(b"x" * 100_000)
        assert server.memory() - before < 10_000_000
        assert receive_all(connection)[:10] in (b"HTTP/1.1 4", b"")


@pytest.mark.parametrize(
    "beginning",
    [
        b"",
        b"GET /health HT",
        b"POST /count HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n",
    ],
)
def test_request_that_arrives_too_slowly_is_dropped(start: Start, beginning: bytes):
    server = start(WEB_REQUEST_SECONDS="1")
    with server.raw() as connection:
        connection.sendall(beginning)
        assert receive_all(connection) == b""


def test_dripping_second_request_is_dropped(start: Start):
    server = start(WEB_REQUEST_SECONDS="1")
    with contextlib.closing(server.client()) as connection:
        connection.request("GET", "/health")
        connection.getresponse().read()
        # The second request of a connection has the same time limit as the first.
        connection.sock.sendall(b"GET /health HTTP/1.1\r\nCookie: ")
        end = time.monotonic() + PATIENCE
        with pytest.raises(ConnectionError):  # noqa: PT012  whichever of the many sends it is
            while time.monotonic() < end:
                connection.sock.sendall(b"x")
                time.sleep(0.05)


def test_slow_download_blocks_its_sender(start: Start):
    server = start()
    before = server.memory()
    with server.begun("/download?count=2000&size=50000") as response:  # 100 MB
        assert server.stalled_count() < 1_000
        assert server.memory() - before < 20_000_000
        body = response.read()
    assert len(body) == 100_000_000
    assert [int(part) for part in body.replace(b"x", b"").split()] == list(range(2_000))


# --- The scope ------------------------------------------------------------------------------------


def test_client_cannot_choose_root_path_or_address(server: WebServer):
    headers = {"Daphne-Root-Path": "/x", "X-Forwarded-For": "9.9.9.9", "X-Forwarded-Proto": "https"}
    scope = server.state(**headers)
    assert (scope["root_path"], scope["client"][0], scope["scheme"]) == ("", "127.0.0.1", "http")


def test_trusted_proxy_sets_address_and_scheme(start: Start):
    server = start(TRUST_PROXY="1")
    headers = {"X-Forwarded-For": "6.6.6.6, 2001:db8::1", "X-Forwarded-Proto": "https"}
    scope = server.state(**headers)
    assert (scope["client"][0], scope["scheme"]) == ("2001:db8::1", "https")
    for last in ("203.0.113.9:4711", "[2001:db8::9]:443", "[2001:db8::9]"):
        found = server.state(**{"X-Forwarded-For": f"6.6.6.6, {last}"})["client"][0]
        assert found in ("203.0.113.9", "2001:db8::9"), last
    assert server.state(**{"X-Forwarded-For": "nonsense"})["client"][0] == "127.0.0.1"


# --- Applications that fail -----------------------------------------------------------------------


async def test_failing_application_ends_its_own_connection_only(start: Start):
    server = start()
    async with server.connect("/ws/echo") as bystander:
        for _ in range(2):  # the first failure must not stop the check that finds the second
            with pytest.raises((http.client.HTTPException, ConnectionError)):
                await asyncio.to_thread(server.request, "GET", "/fail?begin=1")
            async with server.connect("/ws/fail?begin=1") as connection:
                assert await close_code(connection) == 1011
            with pytest.raises(InvalidStatus, match="500"):
                async with server.connect("/ws/fail"):
                    pass
            with pytest.raises(InvalidHandshake):
                async with server.connect("/ws/fail?begin=1&protocol=not-offered"):
                    pass
            status, _ = await asyncio.to_thread(server.request, "GET", "/fail")
            assert status == 500
        await bystander.send("still here")
        assert await bystander.recv() == "still here"
    await asyncio.to_thread(server.wait_for, "a mistake in the application")


# --- The access log -------------------------------------------------------------------------------


async def test_access_log_has_no_query_and_no_cookie(start: Start):
    """Nor a line break of the client's, with which it could forge a line."""
    server = start()
    server.request("GET", "/state?token=secret1", headers={"Cookie": "session=secret2"})
    async with server.connect("/ws/echo?token=secret3") as connection:
        await connection.close(4000)
    server.request("GET", "/forged%0Aline")
    server.signal(signal.SIGTERM)
    assert await asyncio.to_thread(server.wait) == 0
    for line in ("GET /state 200", "WS /ws/echo 4000", "GET /forged%0Aline 404"):
        assert re.search(rf"chatproject\.access: {line} \d+ ms$", server.text(), re.MULTILINE)
    assert "secret" not in server.text()


def test_quiet_server_writes_no_access_log(start: Start):
    server = start("--quiet")
    server.get("/health")
    server.signal(signal.SIGTERM)
    assert server.wait() == 0
    assert "chatproject.access" not in server.text()
