"""The navigation of the settings, and the title of each page."""

from __future__ import annotations

from typing import Any

from django import template
from django.template import Context

from accounts.settings_pages import PAGES

register = template.Library()


@register.inclusion_tag("settings/_pages.html", takes_context=True)
def settings_pages(context: Context) -> dict[str, Any]:
    """List the pages of the settings, the current one marked."""
    return _place(context)


@register.inclusion_tag("settings/_bar.html", takes_context=True)
def settings_bar(context: Context, title: str = "") -> dict[str, Any]:
    """Write the title of the current page of the settings: its label in the navigation, or `title`."""
    place = _place(context)
    current = place["current"]  # none for a page that the site does not show in the navigation
    return place | {"title": title or (current.label if current else "")}


def _place(context: Context) -> dict[str, Any]:
    match = context["request"].resolver_match
    view = match.view_name if match else ""
    pages = [page for page in PAGES if page.is_shown()]
    current = next((page for page in pages if view == page.view or view in page.views), None)
    return {"pages": pages, "current": current, "is_first": current is pages[0]}
