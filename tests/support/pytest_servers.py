"""Start Postgres and Valkey for the tests, before Django reads its settings.

Loaded by ``-p tests.support.pytest_servers`` (pyproject.toml): a conftest.py is imported after the
settings. One Postgres serves the whole session, with a database for each xdist worker by
pytest-django, a copy of a migrated one. Each worker has a Valkey of its own, since database numbers
do not separate publish and subscribe. TEST_POSTGRES_BIN and TEST_REDIS_SERVER name other programs (installed_servers.py).
"""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import tempfile
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest

from chatproject.local.run import documented_variables
from chatproject.local.servers import PostgresServer, ValkeyServer, is_alive
from tests.support import installed_servers, migrated_cluster

POSTGRES_SETTINGS = {
    "max_connections": "500",
    "shared_buffers": "64MB",
    # Nothing here has to survive a crash of the machine. A commit must survive a killed Postgres
    # though, as it does in production, so synchronous_commit stays on: without fsync it is cheap.
    "fsync": "off",
    "full_page_writes": "off",
}

# Tests never touch a real service, even if the developer's environment names one.
ENVIRONMENT = {
    "SECRET_KEY": "only-for-tests-0123456789-abcdefghijklmnopqrstuvwxyz",
    "DEBUG": "0",
    "HTTPS": "0",
    "STATIC_MANIFEST": "0",  # the static files are not collected
    "ALLOWED_HOSTS": "localhost,127.0.0.1,[::1],testserver",
    "OPENAI_BASE_URL": "http://127.0.0.1:9/v1",  # closed: a test names its own provider
    "OPENAI_API_KEY": "only-for-tests",
    "DEFAULT_MODEL": "stub-model",
    "ALLOW_UNVERIFIED_CREDITS": "1",
    "DB_POOL_SIZE": "48",  # many tests use more threads than production
    "ENV_FILE": os.devnull,
}

# Set by the controller for its xdist workers, which inherit the environment.
FOLDER_VARIABLE = "PARLEY_TEST_FOLDER"

PREFIX = "parley-tests-"  # of the folders' names, before the process id of the session

folder: Path
"""This session's temporary folder, deleted with its content at the end."""

valkey: ValkeyServer
"""The Valkey of this process."""


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: takes more than ten seconds")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_load_initial_conftests(
    early_config: pytest.Config, args: list[str]
) -> Generator[None, None, None]:
    # A wrapper: pytest-django reads the settings in the same hook, and is called earlier.
    if not {"-h", "--help", "-V", "--version"} & set(args):
        _start_servers(early_config)
    yield


# Deletes the rows of tables that have rows. Django's TRUNCATE creates every file of every table
# anew, which takes half a second, and makes it insert the rows of two tables after each test.
EMPTY = """
DO $$
DECLARE
  name text;
  holds_rows boolean;
BEGIN
  SET LOCAL session_replication_role = replica;  -- no triggers: some tables refuse deletions
  FOREACH name IN ARRAY ARRAY['%s'] LOOP
    EXECUTE format('SELECT EXISTS (SELECT FROM %%I)', name) INTO holds_rows;
    IF holds_rows THEN
      EXECUTE format('DELETE FROM %%I', name);
    END IF;
  END LOOP;
END $$
"""
KEPT = {"django_content_type", "auth_permission"}  # the same rows in every test


@pytest.fixture(autouse=True, scope="session")
def empty_tables_quickly() -> Generator[None, None, None]:
    """Let tests with their own transactions clean up in milliseconds."""
    from django.db.backends.postgresql.operations import DatabaseOperations

    django_way = DatabaseOperations.sql_flush

    def sql_flush(
        self: DatabaseOperations, style: Any, tables: list[str], **options: Any
    ) -> list[str]:
        if options.get("reset_sequences"):
            return django_way(self, style, tables, **options)
        return [EMPTY % "', '".join(sorted({*tables} - KEPT))] if tables else []

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DatabaseOperations, "sql_flush", sql_flush)
        # It inserts the rows of KEPT where they are missing, and takes ten times as long as the rest.
        signal = "django.core.management.commands.flush.emit_post_migrate_signal"
        patch.setattr(signal, lambda *arguments, **options: None)
        yield


@pytest.fixture(autouse=True, scope="session")
def drop_database_despite_sessions() -> Generator[None, None, None]:
    """End the remaining sessions first, which a busy machine may end late."""
    from django.db.backends.postgresql import creation

    creation_class: Any = creation.DatabaseCreation
    django_way = creation_class._destroy_test_db

    def destroy(self: Any, name: str, verbosity: int) -> None:
        self.connection.close_pool()
        with self._nodb_cursor() as cursor:
            cursor.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = %s AND pid <> pg_backend_pid()",
                [name],
            )
        django_way(self, name, verbosity)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(creation_class, "_destroy_test_db", destroy)
        yield


@pytest.fixture(autouse=True, scope="session")
def hash_passwords_quickly() -> None:
    """Hash passwords with MD5: a safe hash takes half a second for each user."""
    from django.conf import settings

    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]


@pytest.fixture(autouse=True, scope="session")
def find_static_files_once() -> Generator[None, None, None]:
    """Keep WhiteNoise's list of the static files: it is made for each test client, in 12 ms."""
    from whitenoise.middleware import WhiteNoiseMiddleware

    own_way: Any = WhiteNoiseMiddleware.add_files_from_finders
    kept: dict[tuple[object, ...], dict[str, Any]] = {}

    def add_files_from_finders(self: Any) -> None:
        key = (self.static_prefix, self.static_root, self.max_age)
        if key not in kept:
            before = dict(self.files)
            own_way(self)
            kept[key] = {url: file for url, file in self.files.items() if url not in before}
        self.files.update(kept[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WhiteNoiseMiddleware, "add_files_from_finders", add_files_from_finders)
        yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """Replace the connection of a test that was broken off amid a statement, at its time limit.

    Otherwise its teardown and all later tests of this process fail: the statement is still under way.
    """
    try:
        yield
    except BaseException:
        from django.db import connection
        from psycopg.pq import TransactionStatus

        session = connection.connection
        if session is not None and session.info.transaction_status == TransactionStatus.ACTIVE:
            session.close()
            connection.in_atomic_block = False
            connection.close()
        raise


# Modules with a site of their own, which takes longer to start than most tests.
OWN_SITE = (
    "/test_behind_nginx.py",
    "/test_billing.py",
    "/test_limits.py",
    "/test_sharing.py",
    "/test_single_sign_on.py",
)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `--dist loadscope`, keep only the modules of OWN_SITE in one process each."""
    if config.getvalue("dist") != "loadscope":
        return None
    from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

    class Scheduler(LoadScopeScheduling):  # type: ignore[misc] # its library has no types
        def _split_scope(self, nodeid: str) -> str:
            module = nodeid.partition("::")[0]
            return module if module.endswith(OWN_SITE) else nodeid

    return Scheduler(config, log)


def _start_servers(config: pytest.Config) -> None:
    global folder, valkey
    installed_servers.use()
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker is None:
        for name in documented_variables():
            os.environ.pop(name, None)
        os.environ.update(ENVIRONMENT)
        for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}[0-9]*-*"):
            if not is_alive(int(path.name.removeprefix(PREFIX).partition("-")[0])):
                shutil.rmtree(path, ignore_errors=True)  # that session was killed
        folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-"))
        os.environ[FOLDER_VARIABLE] = str(folder)
        _at_end(config, functools.partial(shutil.rmtree, folder, ignore_errors=True))
        # The folder is root's when root runs the tests, and Postgres then runs as another user.
        folder.chmod(0o711)
        postgres = PostgresServer(folder / "postgres", settings=POSTGRES_SETTINGS)
        _at_end(config, postgres.stop)
        migrated_cluster.start(postgres)
        os.environ["DATABASE_URL"] = postgres.url
    else:
        folder = Path(os.environ[FOLDER_VARIABLE])

    os.environ["STATIC_ROOT"] = str(folder / "static")
    (folder / "static").mkdir(exist_ok=True)

    valkey = ValkeyServer(folder / f"valkey-{worker or 'main'}")
    _at_end(config, valkey.stop)
    valkey.start()
    os.environ["REDIS_URL"] = valkey.url


def _at_end(config: pytest.Config, action: Callable[[], None]) -> None:
    # Again at exit, for a start that failed before pytest would clean up; a second call is harmless.
    config.add_cleanup(action)
    atexit.register(action)
