"""What is checked at start beyond the form of each variable: combinations that cannot work."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.core.checks import CheckMessage, Error, Warning, register


@register()
def check_provider(**kwargs: Any) -> list[CheckMessage]:
    """A provider that wants a key needs one, and a model must be named."""
    found: list[CheckMessage] = []
    host = urlsplit(settings.OPENAI_BASE_URL).hostname or ""
    if host == "api.openai.com" and not settings.OPENAI_API_KEY:
        found.append(
            Warning(
                "OPENAI_API_KEY is not set, so that every reply will fail.",
                hint="Set OPENAI_API_KEY, or point OPENAI_BASE_URL at a server of your own.",
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
    """The threads of lib.db must each get a connection, beside those of the pages."""
    size = settings.DATABASES["default"]["OPTIONS"]["pool"]["max_size"]
    if size > settings.DB_THREADS:
        return []
    return [
        Error(
            f"DB_POOL_SIZE={size} leaves no connection beside the {settings.DB_THREADS} threads of DB_THREADS.",
            hint="Set DB_POOL_SIZE to at least twice DB_THREADS.",
            id="parley.E002",
        )
    ]
