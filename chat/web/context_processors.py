"""Variables that every template may use."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

from django.utils.functional import SimpleLazyObject

from chat.web.pages import page_context
from chatproject.lib.http import Request


def shell(request: Request) -> dict[str, Any]:
    """Add what chat/page.html shows around each page of a signed-in user, for the pages of other apps.

    `page_context` is called at the first use of one of its values: pages without a sidebar make no query.
    """
    read = cache(partial(page_context, request))
    return {
        name: SimpleLazyObject(lambda name=name: read()[name])  # type: ignore[misc] # no type for name
        for name in (
            "sidebar",
            "projects",
            "projects_closed",
            "assets",
            "modules",
            "no_id",
            "shortcuts",
            "sharing_allowed",
            "shared_with_users",
        )
    }
