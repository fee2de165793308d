"""Entry point of the job that sends notifications. Redis stores its path."""

from __future__ import annotations

from uuid import UUID

from chat.push import notifications


async def notify(run_id: str) -> None:
    """Notify the devices of a user of the end of a run."""
    await notifications.notify(UUID(run_id))
