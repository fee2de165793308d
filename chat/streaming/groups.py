"""Names of the groups that live events are published to."""

from __future__ import annotations

from uuid import UUID

# --- Groups of the channel layer --------------------------------------------------------------


def run_group(run_id: UUID | str) -> str:
    """The group on which the events of a run are published."""
    return f"run.{run_id}"


def user_group(user_id: int) -> str:
    """The group of all sockets of a user: what concerns the person, whatever page is open."""
    return f"user.{user_id}"
