"""Entry point of the jobs that make insights. Redis stores its path."""

from __future__ import annotations

from uuid import UUID

from chat.insights import generate


async def make(insight_id: str, attempt: int) -> None:
    """Make an insight, unless another job has claimed this attempt."""
    await generate.run(UUID(insight_id), attempt)
