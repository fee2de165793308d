"""Health pages for machines that watch this one, and the page of a fault of ours."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable

import redis
from django.db import connection
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.template import loader

from chat.events import ERRORS
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


def server_error(request: HttpRequest) -> HttpResponse:
    """The page of an exception that no view expected: 503 while Postgres or Redis is away, else 500.

    Django calls it while the exception is being handled.
    """
    status = 503 if isinstance(sys.exc_info()[1], UNREACHABLE) else 500
    if request.accepts("text/html"):
        response = HttpResponse(loader.render_to_string(f"{status}.html"), status=status)
    else:
        code = "unavailable" if status == 503 else "internal"
        response = JsonResponse({"code": code, "message": ERRORS[code]}, status=status)
    if status == 503:
        response["Retry-After"] = "5"
    return response
