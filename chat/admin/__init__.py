"""Chat's part of the admin: the catalogue, records of conversations and runs, feedback, the live queue, shares, webhooks, RQ's pages."""

from __future__ import annotations

from chat.admin import (
    announcements,
    catalogue,
    conversations,
    feedback,
    insights,
    legal,
    live_queue,
    mcp,
    moderation,
    queue_pages,
    sharing,
    webhooks,
)

__all__ = [
    "announcements",
    "catalogue",
    "conversations",
    "feedback",
    "insights",
    "legal",
    "live_queue",
    "mcp",
    "moderation",
    "queue_pages",
    "sharing",
    "webhooks",
]
