"""Fixtures for all tests, on the servers that tests/support/pytest_servers.py starts."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from django.conf import settings
from django.utils import translation

from chatproject.local.servers import PostgresServer, ValkeyServer
from tests.support import migrated_cluster, pytest_servers


@pytest.fixture(scope="session")
def django_db_modify_db_settings(django_db_modify_db_settings_parallel_suffix: None) -> None:
    """Copy the migrated database; the migrations then find no work."""
    settings.DATABASES["default"].setdefault("TEST", {})["TEMPLATE"] = migrated_cluster.TEMPLATE


@pytest.fixture
def valkey_url() -> str:
    """The URL of the Valkey that all tests of this process share, emptied."""
    with redis.from_url(pytest_servers.valkey.url) as client:
        client.flushall()
    return pytest_servers.valkey.url


@pytest.fixture
def valkey_client(valkey_url: str) -> Iterator[redis.Redis]:
    """A client of that Valkey."""
    with redis.Redis.from_url(valkey_url) as client:
        yield client


@pytest.fixture
def server_folder() -> Iterator[Path]:
    """An empty folder for the test's own servers; the user of Postgres may enter it."""
    folder = pytest_servers.folder / f"test-{uuid.uuid4().hex}"
    folder.mkdir(mode=0o711)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def own_valkey(server_folder: Path) -> Iterator[ValkeyServer]:
    """A running Valkey for this test alone: to be stopped, killed and started again."""
    server = ValkeyServer(server_folder / "valkey")
    server.start()
    yield server
    server.stop()


@pytest.fixture
def own_postgres(server_folder: Path) -> Iterator[PostgresServer]:
    """A running Postgres for this test alone: to be stopped, killed and started again."""
    server = PostgresServer(server_folder / "postgres", settings=pytest_servers.POSTGRES_SETTINGS)
    server.start()
    yield server
    server.stop()


@pytest.fixture(autouse=True)
def _no_announcements() -> None:
    """Begin as a process that has just found no announcement, so that no page of a test reads them."""
    from chat.announcements import memory

    memory.found, memory.due = [], float("inf")


@pytest.fixture(autouse=True)
def _no_documents() -> None:
    """Begin as a process that has just found no terms, so that no page of a test reads them."""
    from accounts.consent import memory

    memory.found, memory.due = [], float("inf")


@pytest.fixture(autouse=True)
def _no_plans() -> None:
    """Begin as a process that has just found no plan; a test that makes one has it read."""
    from billing.metering.plan_limits import memory

    memory.found, memory.due = {}, float("inf")


@pytest.fixture(autouse=True)
def _no_language() -> None:
    """Begin in the default language: the request of an earlier test has left its own in this thread."""
    translation.deactivate()
