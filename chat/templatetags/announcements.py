"""Templates: the announcements of a page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django import template

from chat.announcements import for_user

if TYPE_CHECKING:
    from chat.models import Announcement

register = template.Library()


@register.simple_tag(takes_context=True)
def announcements(context: dict[str, Any]) -> list[Announcement]:
    """Return the announcements for the user of a page."""
    user = context.get("user")
    return for_user(user) if user is not None and user.is_authenticated else []
