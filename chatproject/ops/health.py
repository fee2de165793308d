"""Health-check endpoints."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

from django.http import HttpRequest, HttpResponse, JsonResponse

from chatproject.lib import db
from chatproject.lib.db import prepared
from chatproject.lib.outages import UNREACHABLE
from chatproject.lib.redis.clients import sync_client

PATIENCE = 1.0  # seconds for each part to answer


async def health(request: HttpRequest) -> HttpResponse:
    """Liveness: this process answers. Uses no other service."""
    return HttpResponse("ok\n", content_type="text/plain")


async def ready(request: HttpRequest) -> JsonResponse:
    """Readiness: 200 when Postgres and Redis answer within PATIENCE, else 503; the body names both."""
    database, queue = await asyncio.gather(
        _answers(db.run(prepared.all, "SELECT 1", ())),
        _answers(asyncio.to_thread(lambda: sync_client().ping())),
    )
    parts = {"database": database, "redis": queue}
    return JsonResponse(parts, status=200 if all(parts.values()) else 503)


async def _answers(question: Awaitable[object]) -> bool:
    try:
        async with asyncio.timeout(PATIENCE):
            await question
    except (TimeoutError, *UNREACHABLE):
        return False
    return True
