"""Systems under test: real processes, and clients that use them as people do.

Each system is given the address of the same provider and serves the same users; the measurements
depend on nothing else of it.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

# Imported only when measured: a peer needs other packages.
SYSTEMS = {
    "parley": "bench.parley:Parley",
    "parley-two-webs": "bench.parley:ParleyTwoWebs",
    "parley-api": "bench.api:ParleyApi",
    "proxy": "bench.peers.systems:Proxy",
    "chainlit": "bench.peers.systems:Chainlit",
}

# Measured only when they are named.
ON_DEMAND = {"parley-two-webs", "parley-api"}


class WrongReply(Exception):
    """A system's answer was wrong; the message has the difference."""


class NotInstalled(Exception):
    """A system cannot run on this machine; the message names the missing part."""


class Client(ABC):
    """One user's open connection, as that user's browser would hold it."""

    @abstractmethod
    def send(self, prompt: str) -> AsyncIterator[str]:
        """Send one message and yield the pieces of its reply as they arrive, until it is complete.

        An async generator. Raises WrongReply when the system refuses, fails, or ends with a whole
        text that differs from the pieces; ConnectionError when the connection is lost.
        """

    @abstractmethod
    async def close(self) -> None:
        """Close the connection; without effect when it is closed."""


class System(ABC):
    """Real processes, started by `start` and ended by `stop`, that serve users from 0 to `users` - 1.

    `folder` is empty and the system's own: logs, databases, sockets. It is removed after `stop`.
    """

    name: ClassVar[str]

    def __init__(self, *, provider_url: str, folder: Path, users: int) -> None:
        self.provider_url = provider_url  # like http://127.0.0.1:12345/v1
        self.folder = folder
        self.users = users

    @abstractmethod
    def start(self) -> None:
        """Start every process; returns when users can connect.

        Raises NotInstalled, or RuntimeError with the end of the log of a process that did not start.
        """

    @abstractmethod
    def stop(self) -> None:
        """End every process that `start` started, also after it failed halfway."""

    @abstractmethod
    def roles(self) -> Mapping[str, Sequence[int]]:
        """The running processes by role: web, worker, redis, postgres, clock.

        Their children count with them.
        """

    async def loop_blocks(self, since: float, until: float) -> Mapping[str, Sequence[float]]:
        """Milliseconds of each block of an event loop between two `time.time()`, by role.

        Roles that do not report blocks are left out; a system may have no other.
        """
        return {}

    @abstractmethod
    async def connect(self, user: int) -> Client:
        """Open one user's connection; returns when it is ready for `send`."""


def find(name: str) -> type[System]:
    """The system of this name. Raises NotInstalled, with the reason, when it cannot be imported."""
    module, _, attribute = SYSTEMS[name].partition(":")
    try:
        system: type[System] = getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        raise NotInstalled(f"{name} cannot be loaded: {error}") from error
    return system
