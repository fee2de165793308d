"""The banners of announcements, and closing one."""

from __future__ import annotations

from django.http import HttpResponse, JsonResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils.http import url_has_allowed_host_and_scheme
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_POST, require_safe

from chat import announcements
from chat.errors import ChatError
from chat.web.responses import handles_chat_errors, wants_json
from chatproject.lib.http import Request


@require_safe
@never_cache
def banners(request: Request) -> HttpResponse:
    """Return the banners of a page that is open already."""
    shown = announcements.for_user(request.user, is_fresh=True)
    return render(request, "chat/_announcements.html", {"shown": shown})


@require_POST
@handles_chat_errors
def dismiss(request: Request) -> HttpResponse:
    """Close the announcement `announcement`; a page returns to `next`."""
    number = request.POST.get("announcement", "")
    if not (number.isascii() and number.isdecimal() and len(number) < 19):
        raise ChatError("not_found")
    announcements.dismiss(user=request.user, announcement_id=int(number))
    if wants_json(request):
        return JsonResponse({"message": ""})
    back = request.POST.get("next", "")
    is_own = url_has_allowed_host_and_scheme(back, None)
    return redirect(back if is_own and back.startswith("/") else reverse("chat:new"))
