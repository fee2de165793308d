"""What the bench can put load on: systems of real processes, and clients that talk to them as users do.

Each system is given the address of the same provider (bench/provider.py) and serves the same users;
who measures knows nothing else about it.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

# Where each system is, imported only when it is asked for: a neighbour needs packages of its own.
SYSTEMS = {
    "parley-uvicorn": "bench.parley:ParleyUvicorn",
    "parley-daphne": "bench.parley:ParleyDaphne",
    "parley-uvicorn-2": "bench.parley:ParleyTwoWebs",
    "proxy": "bench.peers.systems:Proxy",
    "chainlit": "bench.peers.systems:Chainlit",
}

# Measured only when they are named.
ON_DEMAND = {"parley-uvicorn-2"}


class WrongReply(Exception):
    """A system answered, but not as it must; the message says what was wrong."""


class NotInstalled(Exception):
    """A system cannot run on this machine; the message says what it needs."""


class Client(ABC):
    """One user's open connection, as that user's browser would hold it."""

    @abstractmethod
    def send(self, prompt: str) -> AsyncIterator[str]:
        """Send one message and yield the pieces of its reply as they arrive, until it is complete.

        An async generator. Raises WrongReply when the system refuses, fails, or tells a whole text
        at the end that differs from the pieces; ConnectionError when the connection is lost.
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

        Raises NotInstalled, or RuntimeError with the end of the log of what did not start.
        """

    @abstractmethod
    def stop(self) -> None:
        """End every process that `start` started, also when that failed halfway."""

    @abstractmethod
    def roles(self) -> Mapping[str, Sequence[int]]:
        """The processes by role: web, worker, redis, postgres, clock; only those that there are.

        Their children count with them.
        """

    async def loop_blocks(self, since: float, until: float) -> Mapping[str, Sequence[float]]:
        """The moments (milliseconds) in which event loops stood still, by role.

        Between two `time.time()`. Only the roles that tell, of which a system may have none.
        """
        return {}

    @abstractmethod
    async def connect(self, user: int) -> Client:
        """Open one user's connection; returns when it is ready for `send`."""


def find(name: str) -> type[System]:
    """The system of this name. Raises NotInstalled, with what to do, when it cannot be imported."""
    module, _, attribute = SYSTEMS[name].partition(":")
    try:
        system: type[System] = getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        raise NotInstalled(f"{name} cannot be loaded: {error}") from error
    return system
