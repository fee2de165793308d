"""The list of the site's components for staff: each in every state, both themes and both directions."""

from __future__ import annotations

from pathlib import Path

from django.conf import settings
from django.http import HttpResponse
from django.shortcuts import render
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from chat.errors import ChatError
from chat.web.responses import handles_chat_errors
from chatproject.lib.http import Request

# Of all pages but the admin's. `print` and `paper` are for prints.
SHEETS = sorted(
    path.relative_to(folder).as_posix()
    for folder in map(Path, settings.STATICFILES_DIRS)
    for path in folder.glob("css/*.css")
    if not path.stem.startswith("admin") and path.stem not in ("paper", "print")
)


@require_safe
@never_cache
@handles_chat_errors
def styleguide(request: Request) -> HttpResponse:
    """Show every component four times. Raises `not_allowed` for users who are not staff."""
    if not request.user.is_staff:
        raise ChatError("not_allowed")
    panels = [
        {"name": f"{theme}-{direction}", "theme": theme, "direction": direction}
        for theme in ("light", "dark")
        for direction in ("ltr", "rtl")
    ]
    return render(request, "chat/styleguide.html", {"panels": panels, "sheets": SHEETS})
