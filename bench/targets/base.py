"""What every target is given and what it says of itself."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from bench.load import Round
from bench.systems import System
from tests.support.fake_llm import FakeLLM


@dataclass(frozen=True)
class Place:
    """A running system, warmed up, and what is asked of it; `seconds` is the length of a window."""

    system: System
    provider: FakeLLM
    users: int
    seconds: float


@dataclass(frozen=True)
class Target:
    """A measurement. `sizes` has the numbers of users for each system that it is for.

    `setup` is given to the systems' constructors; targets of the same setup share a start. `users`
    is how many users there must be when that is not the size. Those that are not `by_default` are
    measured only when they are named.
    """

    name: str
    measure: Callable[[Place], Awaitable[Round]]
    sizes: Mapping[str, tuple[int, ...]]
    seconds: float = 8.0
    setup: Mapping[str, Any] = field(default_factory=dict)
    by_default: bool = True
