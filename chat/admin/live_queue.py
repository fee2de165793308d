"""The staff's page of this moment: who waits, who works, and whether the event loops keep up."""

from __future__ import annotations

from datetime import UTC, datetime

import redis
from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import URLPattern, path
from django.utils import timezone

from chat.runs.queue_stats import queue_figures
from chatproject.lib import loop_monitor

# Who may see the runs may see how they are doing.
VIEW = "chat.view_run"
RELOAD_SECONDS = 5


def show(request: HttpRequest) -> HttpResponse:
    """The queue, the workers and the loops; reloads itself. While Redis is away it says so."""
    if not request.user.has_perm(VIEW):
        raise PermissionDenied
    context = {
        **admin.site.each_context(request),
        "title": "Live",
        "now": timezone.now(),
        "reload_seconds": RELOAD_SECONDS,
    }
    try:
        report = loop_monitor.report()
        context["queue"] = queue_figures(timezone.now())
        context["loops"] = report.loops
        context["blocks"] = [
            (datetime.fromtimestamp(block.at, tz=UTC), block) for block in report.blocks
        ]
    except redis.RedisError:
        context["is_away"] = True
    return TemplateResponse(request, "admin/chat/live.html", context)


urlpatterns: list[URLPattern] = [path("", admin.site.admin_view(show), name="chat_live")]
