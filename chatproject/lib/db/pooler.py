"""Poolers between this process and Postgres, such as PgBouncer, and prepared statements behind them.

With transaction pooling each transaction may have another session of Postgres. Nothing of this project
depends on a session but prepared statements, and these only where the pooler keeps them.
"""

from __future__ import annotations

import logging
import secrets
from functools import cache
from typing import Any

import psycopg
from psycopg import sql

logger = logging.getLogger(__name__)


def adapt(connection: psycopg.Connection[Any]) -> None:
    """Turn prepared statements off on a new connection whose pooler does not keep them."""
    if connection.prepare_threshold is None or not is_behind_pooler(connection):
        return
    if not keeps_prepared_statements(connection):
        connection.prepare_threshold = None
        _report()


def is_behind_pooler(connection: psycopg.Connection[Any]) -> bool:
    """Return whether a pooler serves this connection.

    A pooler has to give its clients process ids of its own, by which they cancel statements.
    """
    [(pid,)] = connection.execute("SELECT pg_backend_pid()", prepare=False).fetchall()
    return bool(pid != connection.info.backend_pid)


def keeps_prepared_statements(connection: psycopg.Connection[Any]) -> bool:
    """Return whether a pooler gives statements that clients prepare to each of its sessions.

    Then it also renames them: two clients may use the same name. A pooler that passes the names on
    has statements that are missing in one session and doubled in another, except with session
    pooling, which a client cannot recognise.
    """
    text = f"SELECT {secrets.randbits(60)}"
    try:
        # In a transaction, so that both statements have the same session.
        with connection.transaction():
            psycopg.Cursor(connection).execute(text, prepare=True)
            found = connection.execute(
                "SELECT name FROM pg_prepared_statements WHERE statement = %s"
                r" AND name LIKE '\_pg3\_%%'",  # a name of psycopg's
                [text],
                prepare=False,
            ).fetchone()
            if found is not None:
                name = sql.Identifier(found[0])
                connection.execute(sql.SQL("DEALLOCATE {}").format(name), prepare=False)
    except psycopg.errors.DuplicatePreparedStatement:
        return False  # another client has prepared one of this name
    return found is None


@cache  # once for each process
def _report() -> None:
    logger.info(
        "a pooler that does not keep prepared statements serves the database: statements are planned"
        " anew each time, as with DB_PREPARE=0"
    )
