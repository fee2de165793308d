"""MCP servers and connections of which a job was lost, or whose tools were listed long ago."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from django.utils import timezone

from chat.runs import queue
from chat.tools.models import McpConnection, McpServer

if TYPE_CHECKING:
    from datetime import datetime

EVERY = 60.0  # seconds
FRESH = timedelta(hours=1)  # for which a list of tools is used
STALE = timedelta(minutes=2)  # after which a connection that waits for a worker was lost
BATCH = 50

JOBS = {McpConnection.Step.EXCHANGING: "exchange", McpConnection.Step.ENDING: "revoke"}


def sweep(now: datetime) -> int:
    """Enqueue what is due; return how much. Raises redis.RedisError."""
    due = 0
    waiting = McpConnection.objects.filter(step__in=JOBS, asked_at__lt=now - STALE)
    for connection_id, step in waiting.values_list("pk", "step")[:BATCH]:
        queue.enqueue_mcp(JOBS[McpConnection.Step(step)], connection_id=str(connection_id))
        due += 1
    servers = McpServer.objects.filter(enabled=True)
    old = servers.exclude(checked_at__gt=now - FRESH).order_by("checked_at")
    for server_id in old.values_list("pk", flat=True)[:BATCH]:
        # Marked first: the next turn of the clock does not enqueue it once more.
        McpServer.objects.filter(pk=server_id).update(checked_at=timezone.now())
        queue.enqueue_mcp("refresh", server_id=server_id)
        due += 1
    return due
