"""Links to the terms, the privacy notice and the imprint."""

from __future__ import annotations

from typing import Any

from django import template

from accounts import consent

register = template.Library()


@register.inclusion_tag("legal/_links.html")
def legal_links() -> dict[str, Any]:
    """List the documents that exist."""
    return {"kinds": consent.kinds()}
