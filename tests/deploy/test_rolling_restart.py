"""The files of deploy/ while the web processes are restarted one after the other."""

from __future__ import annotations

import shlex
import socket
import ssl
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from chatproject.local.servers import BASE_DIR, free_port
from tests.support import nginx

UNIT = BASE_DIR / "deploy/systemd/parley-web@.service"


class Page(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        """The log of requests is not of interest."""


@contextmanager
def web_process(port: int) -> Iterator[None]:
    server = HTTPServer(("127.0.0.1", port), Page)
    thread = Thread(target=server.serve_forever, args=[0.01])
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def status(port: int, folder: Path) -> int:
    request = urllib.request.Request(f"https://127.0.0.1:{port}/", headers={"Host": nginx.HOST})
    trusted = ssl.create_default_context(cafile=folder / "fullchain.pem")
    try:
        with urllib.request.urlopen(request, context=trusted, timeout=20) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.skipif(nginx.PROGRAM is None, reason="nginx is missing: install nginx-light")
def test_nginx_uses_a_restarted_process_at_once(tmp_path: Path):
    first, second = free_port(), free_port()
    with nginx.running_nginx(tmp_path, web=[first, second]) as (_, https):
        with web_process(second):  # while the first one restarts
            assert {status(https, tmp_path) for _ in range(4)} == {200}
        with web_process(first):  # while the second one restarts
            assert {status(https, tmp_path) for _ in range(4)} == {200}


def test_unit_has_started_when_its_port_answers():
    port = free_port()
    [line] = [line for line in UNIT.read_text().splitlines() if line.startswith("ExecStartPost=")]
    command = line.removeprefix("ExecStartPost=").replace("800%i", str(port))
    with subprocess.Popen(shlex.split(command)) as waiting:
        with pytest.raises(subprocess.TimeoutExpired):
            waiting.wait(0.5)
        with socket.create_server(("127.0.0.1", port)):
            assert waiting.wait(20) == 0
