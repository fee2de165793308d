"""Names of the channel layer's groups, to which live events are published."""

from __future__ import annotations

from uuid import UUID


def run_group(run_id: UUID | str) -> str:
    """Return the group of the followers of a run."""
    return f"run.{run_id}"


EVERYONE = "everyone"  # the group of all sockets of all users


def user_group(user_id: int) -> str:
    """Return the group of all sockets of a user, whatever page is open."""
    return f"user.{user_id}"
