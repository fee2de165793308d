"""Entry point of the job that delivers a message of a webhook. Redis stores its path."""

from __future__ import annotations

from uuid import UUID

from chat.webhooks import attempts as webhook_attempts


async def deliver(delivery_id: str, attempts: int) -> None:
    """Make the attempt that follows `attempts` earlier ones."""
    await webhook_attempts.make(UUID(delivery_id), attempts)
