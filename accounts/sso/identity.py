"""The identity that a provider has confirmed."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Identity:
    """A person at an identity provider; `uid` names the person there for ever, the address may change."""

    uid: str
    email: str = ""
    is_verified: bool = False  # whether the provider has verified the address
    name: str = ""
    groups: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Return the identity as the library passes it on."""
        return asdict(self)
