"""Web servers for tests: one that they share, and ones of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.web_server import WebServer


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebServer]:
    """One server for all tests that leave it as it was."""
    server = WebServer(tmp_path_factory.mktemp("serve") / "log")
    yield server
    server.stop()
    # Nothing that a client sends is a server error.
    assert "Traceback" not in server.log.read_text()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., WebServer]]:
    """Starts servers of the test's own."""
    started: list[WebServer] = []

    def start_one(*arguments: str, **variables: str) -> WebServer:
        started.append(WebServer(tmp_path / f"log{len(started)}", *arguments, **variables))
        return started[-1]

    yield start_one
    for each in started:
        each.stop()
