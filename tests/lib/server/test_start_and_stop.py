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
from chatproject.local.servers import BASE_DIR
from tests.support.programs import PATIENCE, Program, environment, is_open, wait_until
from tests.support.web_server import (
    APPLICATION,
    WebServer,
    close_code,
    read_close_code,
    receive_all,
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
        lines = refused_start("--port", str(port))
    reason = "Address already in use. Change HOST or PORT."
    assert lines == [f"serve: cannot listen on 127.0.0.1, port {port}: {reason}"]


def test_processes_share_a_port(start: Start):
    first = start("--reuse-port")
    second = start("--reuse-port", "--port", str(first.address[1]))  # argparse: the last one counts
    assert first.get("/health") == b"ok"
    first.signal(signal.SIGTERM)
    assert first.wait() == 0
    assert second.get("/health") == b"ok"


@pytest.mark.parametrize("setting", ["MAX_BODY_BYTES=2 MB", "PORT=99999"])
def test_wrong_variable_is_one_line_and_code_1(setting: str):
    variable, _, value = setting.partition("=")
    [line] = refused_start(**{variable: value})
    assert line.startswith(f"serve: {variable}=")


def refused_start(*arguments: str, **variables: str) -> list[str]:
    """The output of a server that ends with code 1."""
    command = [sys.executable, "-m", "chatproject.serve", *arguments, *APPLICATION]
    with Program(command, cwd=BASE_DIR, env=environment(**variables)) as program:
        assert program.wait() == 1
        return program.lines


@pytest.mark.parametrize(("value", "is_warned"), [("uvicorn", True), ("daphne", False)])
def test_removed_variable_is_warned_of(start: Start, value: str, is_warned: bool):
    server = start(WEB_SERVER=value)
    assert ("WEB_SERVER has no effect" in server.text()) is is_warned
    assert server.get("/health") == b"ok"


def test_server_can_be_imported_without_django_settings():
    code = "import chatproject.serve, chatproject.lib.server.daphne"
    environment = {name: value for name, value in os.environ.items() if "DJANGO" not in name}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, timeout=PATIENCE)


# --- Stop -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_signal_stops_everything_in_order(start: Start, number: signal.Signals):
    server = start(WEB_DRAIN_SECONDS="600")  # more than the test has
    async with contextlib.AsyncExitStack() as stack:
        held = stack.enter_context(server.begun("/hold"))
        assert held.read(6) == b"begun "
        stack.enter_context(server.begun("/health")).read()  # the connection stays open, idle
        sockets = [await stack.enter_async_context(server.connect("/ws/echo")) for _ in range(45)]
        server.signal(number)
        assert {await close_code(each) for each in sockets} == {1012}
        # The application finishes the page after it has received the end of a socket.
        assert await asyncio.to_thread(held.read) == b"finished"
        assert await asyncio.to_thread(server.wait) == 0
    assert re.search(r"received the end: (1012|1000)$", server.text(), re.MULTILINE)
    assert "the background task was cancelled" in server.text()
    assert "Traceback" not in server.text()


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
    assert server.wait() == 0


def test_stopping_server_accepts_no_connection(start: Start):
    server = start(WEB_DRAIN_SECONDS="600")
    with server.begun("/hang"):
        server.terminate()
        wait_until(lambda: not is_open(server.address[1]), "connections are refused")
        assert server.process.poll() is None


def test_second_signal_ends_the_process_at_once(start: Start):
    server = start(WEB_DRAIN_SECONDS="600")
    with server.begun("/hang"):
        server.terminate()
        time.sleep(SAME_STOP_SECONDS)
        assert server.process.poll() is None

        def ended() -> bool:
            server.signal(signal.SIGTERM)
            return server.process.poll() is not None

        wait_until(ended, "it has ended")
    assert server.wait() == -signal.SIGTERM


def test_signals_in_quick_succession_are_one(start: Start):
    server = start()
    with server.upgraded() as connection:
        server.signal(signal.SIGINT)
        server.signal(signal.SIGTERM)
        assert read_close_code(connection) == 1012
    assert server.wait() == 0


def test_hanging_application_cannot_keep_the_process(start: Start):
    server = start(WEB_DRAIN_SECONDS="0")
    with server.begun("/hang"):
        server.terminate()
        assert server.wait() == 1
    assert "leaving without it" in server.text()
