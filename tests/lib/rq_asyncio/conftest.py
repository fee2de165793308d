"""The queue, the folder and the worker processes of these tests."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from redis import Redis
from rq import Queue

from chatproject.lib.rq_asyncio import worker
from tests.lib.rq_asyncio.jobs import Folder
from tests.lib.rq_asyncio.workers import PROJECT, make_queue
from tests.support.programs import Program


@pytest.fixture(autouse=True)
def quick_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "CHECK_SECONDS", 0.05)


@pytest.fixture
def open_queue() -> Iterator[Callable[[str], Queue]]:
    clients = []

    def open_queue_at(url: str) -> Queue:
        clients.append(Redis.from_url(url))
        return make_queue(clients[-1])

    yield open_queue_at
    for client in clients:
        client.close()


@pytest.fixture
def queue(valkey_url: str, open_queue: Callable[[str], Queue]) -> Queue:
    return open_queue(valkey_url)


@pytest.fixture
def connection(queue: Queue) -> Redis:
    return queue.connection


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


@pytest.fixture
def start(valkey_url: str) -> Iterator[Callable[..., Program]]:
    """Starts workers in processes of their own."""
    with ExitStack() as programs:

        def start_worker(
            *options: str, url: str = valkey_url, drain: float = 60, cleanup: float = 5
        ) -> Program:
            module = "tests.lib.rq_asyncio.workers"
            command = [sys.executable, "-m", module, url, str(drain), str(cleanup), *options]
            return programs.enter_context(Program(command, cwd=PROJECT))

        yield start_worker
