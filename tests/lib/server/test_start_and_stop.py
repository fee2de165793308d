"""How the web server starts, refuses to start, and stops."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from chatproject.lib.server.limits import SAME_STOP_SECONDS
from tests.support.web_server import (
    APPLICATION,
    PATIENCE,
    WebServer,
    close_code,
    read_close_code,
    receive_all,
    until,
)

Start = Callable[..., WebServer]

# --- Start ----------------------------------------------------------------------------------------


def test_server_listens_on_ipv6(start: Start):
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    server = start("--host", "::1")
    assert server.host == "[::1]"
    assert server.get("/health") == b"ok"


def test_taken_port_is_one_line_and_code_1():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        failed = run_to_the_end("--port", str(port))
    assert failed.returncode == 1
    assert (
        failed.stderr == f"serve: cannot listen on 127.0.0.1, port {port}: Address already in use\n"
    )


@pytest.mark.parametrize("setting", ["MAX_BODY_BYTES=2 MB", "PORT=99999"])
def test_wrong_variable_is_one_line_and_code_1(setting: str):
    variable, _, value = setting.partition("=")
    failed = run_to_the_end(**{variable: value})
    assert failed.returncode == 1
    assert failed.stderr.startswith(f"serve: {variable}=")
    assert failed.stderr.count("\n") == 1


@pytest.mark.parametrize(("value", "is_warned"), [("uvicorn", True), ("daphne", False)])
def test_removed_variable_is_warned_of(start: Start, value: str, is_warned: bool):
    server = start(WEB_SERVER=value)
    assert ("WEB_SERVER has no effect" in server.log.read_text()) is is_warned
    assert server.get("/health") == b"ok"


def test_server_can_be_imported_without_django_settings():
    code = "import chatproject.serve, chatproject.lib.server.daphne"
    environment = {name: value for name, value in os.environ.items() if "DJANGO" not in name}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, timeout=PATIENCE)


def run_to_the_end(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "chatproject.serve", *arguments, *APPLICATION],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


# --- Stop -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_signal_stops_everything_in_order(start: Start, number: signal.Signals):
    server = start(WEB_DRAIN_SECONDS="600")  # more than the test has
    held, response = server.begin("/hold")
    assert response.read(6) == b"begun "
    idle, answer = server.begin("/health")
    answer.read()
    async with server.connect("/ws/echo") as connection:
        server.process.send_signal(number)
        assert await close_code(connection) == 1012
    # The application finishes the page after it has received the end of the socket.
    assert await asyncio.to_thread(response.read) == b"finished"
    assert await asyncio.to_thread(server.exit_code) == 0
    log = server.log.read_text()
    assert re.search(r"received the end: (1012|1000)$", log, re.MULTILINE)
    assert "the background task was cancelled" in log
    assert "Traceback" not in log
    held.close()
    idle.close()


async def test_all_sockets_are_closed_with_1012(start: Start):
    server = start()
    async with contextlib.AsyncExitStack() as stack:
        connections = [
            await stack.enter_async_context(server.connect("/ws/echo")) for _ in range(45)
        ]
        server.terminate()
        assert {await close_code(connection) for connection in connections} == {1012}
    assert await asyncio.to_thread(server.exit_code) == 0
    assert "Traceback" not in server.log.read_text()


def test_arriving_request_is_answered_before_the_end(start: Start):
    server = start(WEB_DRAIN_SECONDS="600")
    with server.raw() as connection:
        connection.sendall(
            b"POST /count HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n12345"
        )
        server.get("/health")  # the bytes before it have been read
        server.terminate()
        connection.sendall(b"6789")
        assert receive_all(connection).endswith(b"\r\n\r\n9")
    assert server.exit_code() == 0


def test_stopping_server_accepts_no_connection(start: Start):
    server = start(WEB_DRAIN_SECONDS="600")
    held, _ = server.begin("/hang")
    server.terminate()

    def refused() -> bool:
        try:
            server.raw().close()
        except ConnectionError:
            return True
        return False

    assert until(refused)
    assert server.process.poll() is None
    held.close()


def test_second_signal_ends_the_process_at_once(start: Start):
    server = start(WEB_DRAIN_SECONDS="600")
    held, _ = server.begin("/hang")
    server.terminate()
    time.sleep(SAME_STOP_SECONDS)
    assert server.process.poll() is None

    def ended() -> bool:
        server.process.send_signal(signal.SIGTERM)
        return server.process.poll() is not None

    assert until(ended)
    assert server.exit_code() == -signal.SIGTERM
    held.close()


def test_signals_in_quick_succession_are_one(start: Start):
    server = start()
    with server.upgraded() as connection:
        server.process.send_signal(signal.SIGINT)
        server.process.send_signal(signal.SIGTERM)
        assert read_close_code(connection) == 1012
    assert server.exit_code() == 0


def test_hanging_application_cannot_keep_the_process(start: Start):
    server = start(WEB_DRAIN_SECONDS="0")
    held, _ = server.begin("/hang")
    server.terminate()
    assert server.exit_code() == 1
    assert "leaving without it" in server.log.read_text()
    held.close()
