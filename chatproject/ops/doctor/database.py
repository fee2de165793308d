"""Postgres: its version, its rights, a pooler on the way to it, and the migrations."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
from django.apps import apps
from django.db import connection

from chatproject.lib.db import limits, pooler
from chatproject.ops import migrations
from chatproject.ops.doctor.finding import Finding, ok, one_line, problem, warning

PART = "database"
OLDEST = 150_000  # as server_version_num; the oldest on which the tests run
CROWDED = 0.85  # share of max_connections

UNREACHABLE = "Start Postgres (and its pooler), or correct host and port in DATABASE_URL."
CREDENTIALS = "Correct user or password in DATABASE_URL."
OTHER = "See the log of Postgres (and of its pooler), and compare DATABASE_URL."

# Parts of messages of libpq, Postgres and PgBouncer, in lower case, and what to do about them. The first
# one counts.
ADVICE = (
    ("refused", UNREACHABLE),
    ("timeout expired", UNREACHABLE),
    ("no answer within", UNREACHABLE),
    ("translate host", UNREACHABLE),
    ("resolve host", UNREACHABLE),
    ("no such file", UNREACHABLE),
    (
        "invalid response to ssl",
        "Another program answers there: correct host and port in DATABASE_URL.",
    ),
    (
        "during ssl exchange",
        "Another program answers there: correct host and port in DATABASE_URL.",
    ),
    ("authentication failed", CREDENTIALS),
    ("no password supplied", "Add the password to DATABASE_URL."),
    ("pg_hba", "Allow this host, user and database in Postgres' pg_hba.conf."),
    (
        "too many connections for role",
        "Raise the role's limit: ALTER ROLE parley CONNECTION LIMIT -1.",
    ),
    ("too many", "Raise max_connections, or lower DB_POOL_SIZE."),
    ("slots are reserved", "Raise max_connections, or lower DB_POOL_SIZE."),
    ("max_client_conn", "Raise max_client_conn of PgBouncer, or lower DB_POOL_SIZE."),
    ("starting up", "Wait until Postgres has started."),
    ("shutting down", "Start Postgres again."),
    ("recovery mode", "Wait until Postgres has recovered."),
    ("not yet accepting", "Wait until Postgres has started."),
    (
        "unsupported startup parameter",
        "Add the parameter to ignore_startup_parameters of PgBouncer.",
    ),
    ("statement pooling", "Set pool_mode = transaction in PgBouncer."),
    ("bouncer config", "Correct the line of this database in PgBouncer's configuration."),
    ("statement timeout", "Raise statement_timeout of the role or the database, or remove it."),
    ("not permitted to log in", "Allow it: ALTER ROLE parley LOGIN."),
    ("permission denied for database", "Allow it: GRANT CONNECT ON DATABASE parley TO parley."),
    ("not currently accepting", "Allow it: ALTER DATABASE parley ALLOW_CONNECTIONS true."),
    ("ssl", "Correct sslmode in DATABASE_URL, or set up TLS on the server."),
    ("role", "Create the role, or correct DATABASE_URL: CREATE ROLE parley LOGIN PASSWORD '…'."),
    (
        "database",
        "Create it: CREATE DATABASE parley OWNER parley ENCODING 'UTF8' LOCALE 'C.UTF-8' TEMPLATE"
        " template0.",
    ),
)

# Triggers refuse changes to these tables, so docs/operations/money.md advises to revoke the rights.
APPEND_ONLY = frozenset(
    {
        "billing_auditrecord",
        "billing_debtentry",
        "billing_invoice",
        "billing_ledgerentry",
        "billing_lotmove",
        "billing_modelprice",
        "billing_usagerecord",
    }
)

SERVER = """
SELECT current_setting('server_version'), current_setting('server_version_num')::int,
  current_database(), current_user::text, current_setting('server_encoding'),
  (SELECT rolsuper FROM pg_roles WHERE rolname = current_user),
  pg_is_in_recovery() OR current_setting('transaction_read_only')::bool,
  (SELECT count(*) FROM pg_stat_activity
    WHERE coalesce(backend_type, 'client backend') = 'client backend'),
  current_setting('max_connections')::int,
  current_setting('default_transaction_isolation'), lower('Ä') = 'ä',
  datcollate, datcollversion, pg_database_collation_actual_version(oid)
FROM pg_database WHERE datname = current_database()
"""

RIGHTS = """
SELECT table_.relname, right_
FROM pg_class AS table_, unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) AS right_
WHERE table_.relname = ANY(%s) AND pg_table_is_visible(table_.oid)
  AND NOT has_table_privilege(table_.oid, right_)
  AND NOT (table_.relname = ANY(%s) AND right_ IN ('UPDATE', 'DELETE'))
ORDER BY 1, 2
"""

# A schema whose tables are not visible, and whether tables exist or may be created.
SCHEMA = """
SELECT
  (SELECT nspname FROM pg_class JOIN pg_namespace AS schema_ ON schema_.oid = relnamespace
    WHERE relname = 'django_migrations' AND to_regclass('django_migrations') IS NULL LIMIT 1),
  to_regclass('django_migrations') IS NOT NULL
    OR coalesce(has_schema_privilege(current_schema(), 'CREATE'), false)
"""


def connect() -> psycopg.Connection[Any]:
    """Return a connection outside the pool, whose errors name the reason of a failure."""
    options = {
        **connection.get_connection_params(),
        "autocommit": True,
        "cursor_factory": psycopg.Cursor,
        "prepare_threshold": 1_000,  # prepares none of the checks' own
    }
    return limits.Connection.connect(**options)


def check() -> Iterator[Finding]:
    """Yield the findings about Postgres; only the first one if it cannot be used at all."""
    try:
        with connect() as session:
            yield from _server(session)
            yield from _pooler(session)
            yield from _rights(session)
        yield from _migrations()
        with connect() as session:
            yield from _search(session)
            yield from _documents(session)
    except psycopg.OperationalError as error:
        text = str(error).lower()
        advice = next((advice for words, advice in ADVICE if words in text), OTHER)
        yield problem(PART, one_line(error), advice)


def _server(session: psycopg.Connection[Any]) -> Iterator[Finding]:
    [number] = session.execute("SELECT current_setting('server_version_num')::int").fetchone() or [
        0
    ]
    if number < OLDEST:  # which lacks functions of SERVER
        yield problem(
            PART,
            f"Postgres {number // 10_000} is too old",
            f"Upgrade to Postgres {OLDEST // 10_000} or newer.",
        )
        return
    (
        version,
        number,
        name,
        role,
        encoding,
        is_superuser,
        is_read_only,
        used,
        most,
        isolation,
        folds_case,
        collation,
        stored_version,
        actual_version,
    ) = session.execute(SERVER).fetchall()[0]
    yield ok(PART, f"Postgres {version.split()[0]}, database {name}, role {role}")
    if is_read_only:
        yield problem(
            PART,
            "it accepts no writes: a replica, or default_transaction_read_only",
            "Name the primary server in DATABASE_URL.",
        )
    if is_superuser:
        yield warning(
            PART,
            f"the role {role} is a superuser",
            "Give the site a role of its own: CREATE ROLE parley LOGIN PASSWORD '…'.",
        )
    if used > CROWDED * most:
        yield warning(
            PART,
            f"{used} of {most} connections are in use",
            "Raise max_connections, lower DB_POOL_SIZE, or put PgBouncer in front.",
        )
    if isolation != "read committed":
        yield problem(
            PART,
            f"default_transaction_isolation is {isolation}, for which the locks are not made",
            f"Run ALTER ROLE {role} SET default_transaction_isolation = 'read committed'.",
        )
    if encoding != "UTF8":
        yield problem(
            "encoding",
            f"the database stores text as {encoding}",
            "Create it anew with ENCODING 'UTF8' TEMPLATE template0, and restore the data into it.",
        )
    elif stored_version != actual_version:
        yield warning(
            "encoding",
            f"the collation {collation} has changed from version {stored_version} to"
            f" {actual_version}, so indexes of texts may be wrong",
            f"Run REINDEX DATABASE {name}; ALTER DATABASE {name} REFRESH COLLATION VERSION.",
        )
    elif not folds_case:
        yield warning(
            "encoding",
            f"with the collation {collation} Ä and ä are different letters to searches",
            "Create the database anew with --locale C.UTF-8, and restore the data into it.",
        )
    else:
        yield ok("encoding", f"UTF8, collation {collation}")


TURNS = 20  # of a search for a server that two clients of a pooler share


def _pooler(session: psycopg.Connection[Any]) -> Iterator[Finding]:
    if not pooler.is_behind_pooler(session):
        yield ok("pooler", "none: the connections lead to Postgres itself")
        return
    ours, theirs = set(), set()
    with connect() as other:
        for _ in range(TURNS):
            ours.add(_server_pid(session))
            theirs.add(_server_pid(other))
    mode = "transaction" if ours & theirs else "session"
    # None: lib.db.pooler has found out that the pooler does not keep them.
    prepared = "not kept, and not used" if session.prepare_threshold is None else "kept"
    yield ok("pooler", f"pooling by {mode}; prepared statements are {prepared}")


def _server_pid(session: psycopg.Connection[Any]) -> int:
    [pid] = session.execute("SELECT pg_backend_pid()").fetchone() or [0]
    return int(pid)


def _rights(session: psycopg.Connection[Any]) -> Iterator[Finding]:
    tables = [model._meta.db_table for model in apps.get_models(include_auto_created=True)]
    missing = session.execute(RIGHTS, [tables, list(APPEND_ONLY)]).fetchall()
    [hidden, may_create] = session.execute(SCHEMA).fetchone() or [None, True]
    if hidden:
        yield problem(
            "rights",
            f"the role does not see the tables of the schema {hidden}",
            f"GRANT USAGE ON SCHEMA {hidden} TO the role, and have it in the role's search_path.",
        )
    elif not may_create:
        yield problem(
            "rights",
            "there are no tables yet, and the role may not create them",
            "Make the role the owner: ALTER DATABASE parley OWNER TO parley.",
        )
    elif missing:
        shown = ", ".join(f"{right} on {table}" for table, right in missing[:3])
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        yield problem(
            "rights",
            f"the role lacks {shown}{more}",
            "GRANT the rights that docs/operations/money.md lists.",
        )
    else:
        yield ok("rights", "the role may read and write the tables")


def _migrations() -> Iterator[Finding]:
    difference = migrations.compare()
    if difference.missing:
        yield problem(
            "migrations",
            f"{len(difference.missing)} are missing, the first is {'.'.join(difference.missing[0])}",
            "Run manage.py migrate.",
        )
    elif difference.unknown:
        yield warning(
            "migrations",
            f"the database has {'.'.join(difference.unknown[-1])}, which this version lacks",
            "Deploy the newer version again, or restore the backup from before its migration.",
        )
    else:
        yield ok("migrations", "all are applied")


# Trigrams of a letter beyond ASCII: none under the locale C.
SEARCH = """
SELECT to_regclass('chat_searchentry') IS NOT NULL, to_regclass('chat_search_trigrams') IS NOT NULL,
  EXISTS (SELECT FROM pg_available_extensions WHERE name = 'pg_trgm'), datctype
FROM pg_database WHERE datname = current_database()
"""


def _search(session: psycopg.Connection[Any]) -> Iterator[Finding]:
    has_table, has_trigrams, is_available, ctype = session.execute(SEARCH).fetchall()[0]
    if not has_table:
        return  # `_migrations` reports it
    if has_trigrams:
        yield ok("search", "words, and parts of words by trigrams")
        return
    slow = "the search finds parts of words only in a user's 5,000 newest messages"
    if ctype in ("C", "POSIX"):
        yield warning(
            "search",
            f"{slow}, as the character type of the database is {ctype}",
            "Create the database anew with LOCALE 'C.UTF-8', and restore the data into it.",
        )
        return
    install = "" if is_available else "Install Postgres' contrib package. "
    yield warning(
        "search",
        f"{slow}, as it has no index of trigrams",
        f"{install}Run CREATE EXTENSION IF NOT EXISTS pg_trgm; CREATE INDEX CONCURRENTLY"
        " chat_search_trigrams ON chat_searchentry USING gin (text gin_trgm_ops).",
    )


# The column and pgvector's versions, and what needs them: a model that is marked for documents.
VECTORS = """
SELECT EXISTS (SELECT FROM pg_attribute WHERE attrelid = to_regclass('documents_chunk')
    AND attname = 'embedding' AND NOT attisdropped),
  (SELECT extversion FROM pg_extension WHERE extname = 'vector'),
  (SELECT default_version FROM pg_available_extensions WHERE name = 'vector'),
  EXISTS (SELECT FROM chat_languagemodel WHERE documents AND enabled),
  (SELECT count(*) FROM documents_documentindex WHERE reason = 'no_vectors')
"""


def _documents(session: psycopg.Connection[Any]) -> Iterator[Finding]:
    if not session.execute("SELECT to_regclass('documents_chunk') IS NOT NULL").fetchall()[0][0]:
        return  # `_migrations` reports it
    has_column, installed, available, has_model, failed = session.execute(VECTORS).fetchall()[0]
    if has_column and has_model and failed:
        yield warning(
            "documents",
            f"{failed:,} documents are found by their words alone, as the model for documents made no vectors of them",
            "Test the model in the admin: its server does not answer, or sends vectors of another size than the"
            " model's row has. The vectors are tried again at a question an hour later.",
        )
        return
    if has_column and has_model:
        yield ok(
            "documents", f"questions find passages by words and by vectors (pgvector {installed})"
        )
        return
    if not has_model:
        yield ok("documents", "questions find passages by words; no model is marked for documents")
        return
    words = "questions over documents find passages by their words alone, as the database has no"
    if available is None:
        advice = "Install pgvector 0.7 or newer on the server of Postgres, then run manage.py prepare_vectors."
        yield warning("documents", f"{words} pgvector", advice)
        return
    yield warning(
        "documents",
        f"{words} vectors yet",
        "Run manage.py prepare_vectors. Where the user of Parley may not create extensions, run"
        f" CREATE EXTENSION vector as an administrator first (version {available} is there; 0.7 is needed).",
    )
