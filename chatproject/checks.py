"""System checks for combinations of settings that cannot work."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.core.checks import CheckMessage, Error, Warning, register


@register()
def check_provider(**kwargs: Any) -> list[CheckMessage]:
    """Check that OpenAI has a key and that a default model is named."""
    found: list[CheckMessage] = []
    host = urlsplit(settings.OPENAI_BASE_URL).hostname or ""
    if host == "api.openai.com" and not settings.OPENAI_API_KEY:
        found.append(
            Warning(
                "OPENAI_API_KEY is not set, so every reply will fail.",
                hint="Set OPENAI_API_KEY, or set OPENAI_BASE_URL to a server of your own.",
                id="parley.W001",
            )
        )
    if not settings.DEFAULT_MODEL:
        found.append(
            Error(
                "DEFAULT_MODEL is empty.",
                hint="Name a model that OPENAI_BASE_URL serves, for example DEFAULT_MODEL=gpt-4o-mini.",
                id="parley.E001",
            )
        )
    return found


@register()
def check_pool(**kwargs: Any) -> list[CheckMessage]:
    """Check that the threads of lib.db leave connections in the pool for synchronous views."""
    size = settings.DATABASES["default"]["OPTIONS"]["pool"]["max_size"]
    if size > settings.DB_THREADS:
        return []
    return [
        Error(
            f"DB_POOL_SIZE={size} leaves no connection besides those of the DB_THREADS={settings.DB_THREADS} threads.",
            hint="Set DB_POOL_SIZE to at least twice DB_THREADS.",
            id="parley.E002",
        )
    ]
