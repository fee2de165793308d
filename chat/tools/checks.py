"""System checks of the tools' settings."""

from __future__ import annotations

from typing import Any

from django.core.checks import CheckMessage, Error, register
from django.core.exceptions import ImproperlyConfigured

from chat.tools import web_search


@register()
def check_web_search(**kwargs: Any) -> list[CheckMessage]:
    """Check that the search engine's settings fit together."""
    try:
        web_search.check_settings()
    except ImproperlyConfigured as error:
        return [
            Error(
                str(error), hint="See .env.example and docs/operations/tools.md.", id="parley.E060"
            )
        ]
    return []
