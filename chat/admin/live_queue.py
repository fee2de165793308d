"""The live queue: a staff page with the present queue, the workers and the lag of the event loops."""

from __future__ import annotations

from datetime import UTC, datetime

import redis
from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import path
from django.utils import timezone
from django.utils.translation import gettext as _

from chat.runs.queue_stats import queue_figures
from chatproject.lib import loop_monitor

PERMISSION = "chat.view_run"
RELOAD_SECONDS = 5


def live_queue(request: HttpRequest) -> HttpResponse:
    """Show the queue, the workers and the loops, or that Redis is unreachable; a script reads the page again."""
    if not request.user.has_perm(PERMISSION):
        raise PermissionDenied
    context = {
        **admin.site.each_context(request),
        "title": _("Live queue"),
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
        context["is_unreachable"] = True
    return TemplateResponse(request, "admin/chat/live_queue.html", context)


urlpatterns = [path("", admin.site.admin_view(live_queue), name="chat_live_queue")]
