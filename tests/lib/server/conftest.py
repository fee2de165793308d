"""Web servers for tests: one that is shared, and separate ones."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest

from tests.support.web_server import WebServer


@pytest.fixture(scope="module")
def server() -> Iterator[WebServer]:
    """One server for all tests of a module that leave it as it was."""
    with WebServer() as server:
        yield server
        server.process.kill()
        server.wait()
        # Nothing that a client sends is a server error.
        assert "Traceback" not in server.text()


@pytest.fixture
def start() -> Iterator[Callable[..., WebServer]]:
    """Starts servers for this test alone."""
    with contextlib.ExitStack() as stack:
        yield lambda *words, **variables: stack.enter_context(WebServer(*words, **variables))
