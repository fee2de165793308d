from __future__ import annotations

from django.conf import settings
from django.http import HttpRequest


def site(request: HttpRequest) -> dict[str, str]:
    """Add the name of the installation to the context of every page."""
    return {"site_name": settings.SITE_NAME}
