"""Health-check endpoints."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

import redis
from django.db import connection
from django.http import HttpRequest, HttpResponse, JsonResponse

from chatproject.lib import db
from chatproject.lib.redis.clients import sync_client

UNREACHABLE = (redis.RedisError, *db.UNREACHABLE)

PATIENCE = 1.0  # seconds for each part to answer


async def health(request: HttpRequest) -> HttpResponse:
    """Liveness: this process answers. Asks nothing of anybody else."""
    return HttpResponse("ok\n", content_type="text/plain")


async def ready(request: HttpRequest) -> JsonResponse:
    """Readiness: 200 when Postgres and Redis answer within PATIENCE, else 503, and which does not."""
    database, queue = await asyncio.gather(
        _answers(db.run(_ask_database)), _answers(asyncio.to_thread(_ask_redis))
    )
    parts = {"database": database, "redis": queue}
    return JsonResponse(parts, status=200 if all(parts.values()) else 503)


def _ask_database() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")


def _ask_redis() -> None:
    sync_client().ping()


async def _answers(question: Awaitable[object]) -> bool:
    try:
        async with asyncio.timeout(PATIENCE):
            await question
    except (TimeoutError, *UNREACHABLE):
        return False
    return True
