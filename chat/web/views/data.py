"""The page of a user's own data: files, ways of chats in and out, the export of all, the end of the account."""

from __future__ import annotations

from django.conf import settings
from django.contrib import messages
from django.http import HttpResponse, JsonResponse
from django.shortcuts import redirect, render
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods

from accounts.models import User
from billing.metering import plan_limits
from chat.attachments import uploads
from chat.errors import ChatError
from chat.transfer import archives
from chat.web.pages import page_context
from chat.web.responses import handles_chat_errors, wants_json
from chatproject.lib.http import Request

PERIODS = (30, 90, 180, 365)  # days


def periods() -> list[int]:
    """Return the days that a user may choose: fewer than the site's."""
    return [
        days for days in PERIODS if not settings.RETENTION_DAYS or days < settings.RETENTION_DAYS
    ]


@require_http_methods(["GET", "HEAD", "POST"])
@never_cache
@handles_chat_errors
def data(request: Request) -> HttpResponse:
    """Show the space of the user's files and the state of the last export of all data; begin one.

    A form with `retention` stores after how many days without a message chats are deleted."""
    if request.method != "POST":
        context = page_context(request) | {
            "page": "settings",
            "used": uploads.used_bytes(request.user),
            "most": plan_limits.upload_bytes(request.user.plan_id),
            "newest": archives.newest(request.user, everything=True),
            "days": settings.ACCOUNT_DELETION_DAYS,
            "retention_days": settings.RETENTION_DAYS,
            "periods": periods(),
        }
        return render(request, "chat/data.html", context)
    if "retention" in request.POST:
        chosen = request.POST["retention"]
        if chosen not in {"", *map(str, periods())}:
            raise ChatError("bad_text", _("Choose one of the options."))
        User.objects.filter(pk=request.user.pk).update(
            retention_days=int(chosen) if chosen else None
        )
        messages.success(request, _("Your settings are saved."))
        return redirect("chat:data")
    try:
        made = archives.start(request.user, everything=True)
    except ChatError as error:
        if wants_json(request):
            raise
        messages.error(request, error.message)
        return redirect("chat:data")
    if wants_json(request):
        return JsonResponse({"id": made.pk, "status": made.status}, status=202)
    return redirect("chat:data")
