"""A leader's lease: a row, taken and renewed by one conditional update (compare-and-set).

It needs no state of a database session, so it holds behind a pooler. Its times are the database's:
the clocks of the machines need not agree. docs/adr/0005-the-clock-holds-a-lease.md has the reasons.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from django.db import OperationalError, connection

from chatproject.lib import db
from chatproject.lib.db import limits, prepared

logger = logging.getLogger(__name__)

# Seconds. After a kill another process leads within LEASE and the pause between its attempts.
LEASE = 5.0
RENEW_EVERY = 1.0
RENEW_STATEMENT = 1.5  # for a renewal, after which it is cancelled

# Seconds after which a leader that has not asked for its lease is stuck and gets no renewal. The
# longest task of the clock asks more often, or ends.
STUCK = 60.0

# An update that matches no row locks none, so processes that stand by do not disturb the leader.
ACQUIRE = """
WITH taken AS (
  UPDATE leadership SET holder = %(holder)s, renewed_at = clock_timestamp(),
    expires_at = clock_timestamp() + %(seconds)s * interval '1 second'
  WHERE name = %(name)s AND (holder = %(holder)s OR expires_at <= clock_timestamp())
  RETURNING name
), made AS (
  INSERT INTO leadership (name, holder, renewed_at, expires_at)
  SELECT %(name)s, %(holder)s, clock_timestamp(),
    clock_timestamp() + %(seconds)s * interval '1 second'
  WHERE NOT EXISTS (SELECT FROM leadership WHERE name = %(name)s)
  ON CONFLICT (name) DO NOTHING
  RETURNING name
)
SELECT name FROM taken UNION ALL SELECT name FROM made
"""

# Also after its end, as long as no other process has taken it.
RENEW = """
UPDATE leadership SET renewed_at = clock_timestamp(),
  expires_at = clock_timestamp() + %(seconds)s * interval '1 second'
WHERE name = %(name)s AND holder = %(holder)s
"""

RELEASE = """
UPDATE leadership SET expires_at = clock_timestamp() WHERE name = %s AND holder = %s
"""

LEADER = """
SELECT holder, extract(epoch FROM clock_timestamp() - renewed_at)::float8,
  expires_at > clock_timestamp()
FROM leadership WHERE name = %s
"""


class LeadershipLost(OperationalError):
    """This process may no longer lead: its lease has ended, or another process has it.

    Code that goes on after errors of single rows passes it on, as it does with a lost database.
    """


class Lease:
    """This process's lease on the leadership `name`.

    A process that leads asks `is_valid` before each piece of work. The answer needs no database: the
    lease counts from before each renewal was sent, so it ends here before it ends in the database,
    however long the process was paused or the database unreachable.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        # With a random part, since containers on two hosts can have the same name and process id.
        self.holder = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(3)}"
        self._valid_until = 0.0
        self._asked_at = 0.0

    def acquire(self) -> bool:
        """Take the lease; return False while another process has it. Raises `db.UNREACHABLE`."""
        sent_at = now()
        return self._extend(sent_at, bool(prepared.all(ACQUIRE, self._params())))

    def _params(self) -> dict[str, str | float]:
        return {"name": self.name, "holder": self.holder, "seconds": LEASE}

    def _extend(self, sent_at: float, is_ours: bool) -> bool:
        self._valid_until = sent_at + LEASE if is_ours else 0.0
        return is_ours

    def is_valid(self) -> bool:
        """Return whether this process still leads."""
        self._asked_at = now()
        return self._asked_at < self._valid_until

    def check(self) -> None:
        """Raise LeadershipLost when this process no longer leads."""
        if not self.is_valid():
            raise LeadershipLost(f"the lease on {self.name!r} has ended")

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Renew the acquired lease, in a thread, until the end of the block, then release it."""
        self._asked_at = now()
        ended = threading.Event()
        thread = threading.Thread(target=self._renew, args=[ended], name="lease", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            self._release()

    def _renew(self, ended: threading.Event) -> None:
        with limits.statements(RENEW_STATEMENT):
            while not ended.wait(RENEW_EVERY):
                if now() - self._asked_at > STUCK:
                    logger.error("the lease on %r is not renewed: its leader is stuck", self.name)
                    return
                sent_at = now()
                try:
                    if not self._extend(sent_at, bool(prepared.change(RENEW, self._params()))):
                        return
                except db.UNREACHABLE as error:
                    logger.warning("the lease on %r could not be renewed: %s", self.name, error)
                finally:
                    connection.close()

    def _release(self) -> None:
        """Let another process lead at once; while the database is unreachable the lease just ends."""
        self._valid_until = 0.0
        try:
            prepared.change(RELEASE, [self.name, self.holder])
        except db.UNREACHABLE as error:
            logger.warning("the lease on %r was not released: %s", self.name, error)
            connection.close()


class Leader(NamedTuple):
    """The process that has the lease, or had it last; `age` is the seconds since its last renewal."""

    name: str
    age: float
    is_alive: bool


def leader(name: str) -> Leader | None:
    """Return the leader; None when there has never been one. Raises `db.UNREACHABLE`."""
    rows = prepared.all(LEADER, [name])
    return Leader(*rows[0]) if rows else None


def now() -> float:
    """Return seconds that also count while the machine is suspended, where the system has them."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
