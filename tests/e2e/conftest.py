"""A whole Parley for the browser: real processes, a separate database, collected static files.

All tests of a pytest process share one. Its database is read with plain SQL, without the product's
code. A test that fails leaves a screenshot of its browser in `.data/screenshots/`.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import re
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import psycopg
import pytest
import redis
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

from tests.e2e.browser import Browser
from tests.support import migrated_cluster, nginx, pytest_servers
from tests.support.fake_llm import FakeLLM
from tests.support.stack import PROJECT, Stack

SCREENSHOTS = PROJECT / ".data" / "screenshots"

PREPARE = """
import django
django.setup()
from django.core.management import call_command
call_command("create_catalogue", verbosity=0)
call_command("collectstatic", interactive=False, verbosity=0)
"""

# Another name of this machine, as in a home network. Browsers trust an address without TLS only if it is
# 127.0.0.1 or localhost.
HOME = "parley.home"
RESOLVED = f"MAP {HOME} 127.0.0.1, MAP {nginx.HOST} 127.0.0.1"

DESKTOP = (1280, 800)
PHONE = (390, 844)


class Site:
    """The running Parley: its address, its processes, its provider and its database."""

    def __init__(self, stack: Stack, provider: FakeLLM, database: str) -> None:
        self.stack = stack
        self.provider = provider
        self.base = stack.base
        self._database = database

    def manage(self, *arguments: str) -> str:
        """Run a command of manage.py against this site; return its output."""
        return self.stack.manage(*arguments)

    def rows(self, query: str, *parameters: object) -> list[tuple[Any, ...]]:
        """The rows of a query."""
        with psycopg.connect(self._database) as connection:
            return connection.execute(query, parameters).fetchall()

    def execute(self, statement: str, *parameters: object) -> None:
        """Change the database, unnoticed by the processes."""
        with psycopg.connect(self._database) as connection:
            connection.execute(statement, parameters)

    def insert(self, statement: str, rows: list[tuple[object, ...]]) -> None:
        """Insert many rows."""
        with psycopg.connect(self._database) as connection:
            connection.cursor().executemany(statement, rows)

    @contextmanager
    def transaction(self, statement: str, *parameters: object) -> Iterator[None]:
        """A transaction that has made a statement, and keeps its locks until the end of the block."""
        with psycopg.connect(self._database) as connection:
            connection.execute(statement, parameters)
            yield

    def reply(self, conversation: str) -> tuple[str, str]:
        """Text and status of the newest reply of a conversation."""
        [found] = self.rows(
            "SELECT text, status FROM chat_message"
            " WHERE conversation_id = %s AND role = 'assistant' ORDER BY id DESC LIMIT 1",
            conversation,
        )
        return found

    def count_runs(self, conversation: str) -> int:
        """The number of runs of a conversation."""
        query = "SELECT count(*) FROM chat_run WHERE conversation_id = %s"
        return int(self.rows(query, conversation)[0][0])


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with running_site(tmp_path_factory.mktemp("site")) as site:
        yield site


@contextmanager
def running_site(folder: Path, **variables: str) -> Iterator[Site]:
    """A Parley in this folder, with additional variables in its environment.

    List a module that has one in pytest_servers.OWN_SITE: `make e2e` then starts it once.
    """
    database = copied(f"e2e_{uuid4().hex}", prepare())
    environment = {
        "DATABASE_URL": database,
        "REDIS_URL": pytest_servers.valkey.url,
        # As in production: hashed names, also in the imports of modules.
        "DEBUG": "0",
        "STATIC_MANIFEST": "1",
        "STATIC_ROOT": str(static_root()),
        "HTTPS": "0",
        "ALLOWED_HOSTS": f"127.0.0.1,localhost,{HOME}",
        **variables,
    }
    with (
        FakeLLM() as provider,
        Stack(folder, provider_url=provider.url, environment=environment) as stack,
    ):
        stack.start("web", "worker", "clock")
        yield Site(stack, provider, database)
        # The ledger is right after all tests.
        stack.manage("check_ledger")


def prepare() -> str:
    """Return the database to copy for a site, with the catalogue, and collect the static files.

    The first process of the session makes both, and the others use them.
    """
    made = pytest_servers.folder / "e2e-database"
    with (pytest_servers.folder / "e2e-lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            name = f"prepared_{uuid4().hex}"
            subprocess.run(
                [sys.executable, "-c", PREPARE],
                cwd=PROJECT,
                env={
                    **os.environ,
                    "DATABASE_URL": copied(name, migrated_cluster.TEMPLATE),
                    "DEBUG": "0",
                    "STATIC_MANIFEST": "1",
                    "STATIC_ROOT": str(static_root()),
                },
                check=True,
                timeout=100,
                stdout=subprocess.DEVNULL,
            )
            made.write_text(name)
        return made.read_text()


def static_root() -> Path:
    return pytest_servers.folder / "e2e-static"


def copied(name: str, template: str) -> str:
    """Copy a database of the session's Postgres; return the URL of the copy."""
    server = os.environ["DATABASE_URL"]
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
    return urlsplit(server)._replace(path=f"/{name}").geturl()


def second_redis() -> str:
    """Another database of the same Valkey, so that a second site has its own queues."""
    return urlsplit(pytest_servers.valkey.url)._replace(path="/1").geturl()


@pytest.fixture(scope="session")
def driver() -> Iterator[webdriver.Chrome]:
    """One Chromium for all tests of the process: starting it takes longer than most tests."""
    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    words = "headless no-sandbox disable-gpu disable-dev-shm-usage disable-background-networking"
    for word in [*words.split(), "hide-scrollbars", f"host-resolver-rules={RESOLVED}"]:
        options.add_argument(f"--{word}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service("/usr/bin/chromedriver"))
    yield driver
    driver.quit()


@pytest.fixture
def open_browser(
    site: Site, driver: webdriver.Chrome, request: pytest.FixtureRequest
) -> Iterator[Callable[..., Browser]]:
    """Opens the test's browser: `open_browser(PHONE, scripting=False, dark=True)`."""

    def open_it(size: tuple[int, int] = DESKTOP, **how: bool) -> Browser:
        return Browser(driver, site.base, size, **how)

    yield open_it
    if getattr(request.node, "has_failed", False):
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        name = re.sub(r"\W+", "-", request.node.name)
        driver.save_screenshot(str(SCREENSHOTS / f"{name}.png"))
        print("\n".join(str(entry) for entry in driver.get_log("browser")))  # noqa: T201 # pytest shows it


@pytest.fixture
def browser(open_browser: Callable[..., Browser], email: str) -> Browser:
    """A browser in which the new user `email` has a new chat open."""
    browser = open_browser()
    browser.sign_up(email)
    return browser


_people = itertools.count(1)


@pytest.fixture
def email() -> str:
    """A new e-mail address, which may sign up.

    All tests have the same IP address, which may sign up 20 times a minute: its counts are deleted.
    """
    for url in (pytest_servers.valkey.url, second_redis()):
        with redis.from_url(url) as cache:
            for key in cache.scan_iter("limit:*"):
                cache.delete(key)
    return f"reader{next(_people)}-{uuid4().hex[:6]}@example.org"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        item.has_failed = True  # type: ignore[attr-defined] # for the fixture above
    return report
