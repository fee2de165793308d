"""Chat's part of the admin: the catalogue, records of conversations, runs and documents, feedback, the live queue, shares, webhooks, RQ's pages."""

from __future__ import annotations

from chat.admin import (
    announcements,
    catalogue,
    conversations,
    documents,
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
    "documents",
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
