"""The devices that receive notifications: requests of the settings page."""

from __future__ import annotations

from http import HTTPStatus

from django.conf import settings
from django.contrib import messages
from django.http import Http404, HttpResponse, JsonResponse
from django.middleware.csrf import get_token
from django.shortcuts import redirect
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods, require_POST

from chat.push import devices, vapid
from chat.web.responses import handles_chat_errors
from chatproject.lib.http import Request

MAX_DIGITS = 18


@require_POST
def add(request: Request) -> HttpResponse:
    """Add the browser of this session, with the subscription that its script has made."""
    response = _add(request)
    if response.status_code == HTTPStatus.CREATED:
        messages.success(request, _("Notifications are on for this device."))
    return response


@require_http_methods(["GET", "HEAD", "POST"])
@never_cache
def renew(request: Request) -> HttpResponse:
    """Add the subscription that replaces an ended one of this browser, whose endpoint `old` names.

    A service worker posts it, and first gets the site's key for a new subscription and a token for the request.
    """
    if request.method == "POST":
        return _add(request, old=request.POST.get("old", ""))
    if not settings.WEB_PUSH:
        raise Http404
    return JsonResponse({"key": vapid.current().public, "token": get_token(request)})


def _add(request: Request, *, old: str = "") -> HttpResponse:
    if not settings.WEB_PUSH:
        raise Http404
    try:
        devices.add(
            request.user,
            session_key=request.session.session_key or "",
            endpoint=request.POST.get("endpoint", ""),
            p256dh=request.POST.get("p256dh", ""),
            auth=request.POST.get("auth", ""),
            agent=request.headers.get("User-Agent", ""),
            old=old,
        )
    except devices.UnusableDevice:
        message = _("The push service of this browser cannot be used. Try another browser.")
        return JsonResponse({"message": message}, status=400)
    return JsonResponse({}, status=201)


@require_POST
@handles_chat_errors
def change(request: Request) -> HttpResponse:
    """Remove a device, or store whether its notifications contain the title of the chat."""
    number = request.POST.get("device", "")
    if not number.isascii() or not number.isdecimal() or len(number) > MAX_DIGITS:
        raise Http404
    if "remove" in request.POST:
        devices.remove(request.user, int(number))
        messages.success(request, _("Notifications are off for this device."))
    else:
        devices.show_title(request.user, int(number), shows="shows_title" in request.POST)
        messages.success(request, _("Your settings are saved."))
    return redirect("chat:notifications")
