"""Chat's part of the admin: the catalogue, records of conversations and runs, and the live queue."""

from __future__ import annotations

from chat.admin import catalogue, conversations, live_queue

__all__ = ["catalogue", "conversations", "live_queue"]
