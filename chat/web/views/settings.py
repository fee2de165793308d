"""The page of a user's own settings."""

from __future__ import annotations

from django.contrib import messages
from django.http import HttpResponse, JsonResponse
from django.shortcuts import redirect, render
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods

from accounts import appearance
from accounts.forms import AppearanceForm
from chat import protocol
from chat.streaming import user_channel
from chat.web.pages import page_context
from chat.web.responses import wants_json
from chatproject.lib.http import Request


@require_http_methods(["GET", "HEAD", "POST"])
@never_cache
def settings(request: Request) -> HttpResponse:
    """Show the settings; store the appearance that a form posts, and publish it to the user's other pages."""
    if request.method != "POST":
        user = request.user
        return _page(request, AppearanceForm({"theme": user.theme, "text_size": user.text_size}))
    form = AppearanceForm(request.POST)
    if not form.is_valid():
        if wants_json(request):
            return JsonResponse({"message": _("Choose one of the options.")}, status=400)
        return _page(request, form, status=400)
    chosen = appearance.Appearance(**form.cleaned_data)
    appearance.store(request, request.user, chosen)
    event = protocol.AppearanceChanged(theme=chosen.theme, text_size=chosen.text_size)
    user_channel.announce_appearance(request.user.pk, event)
    if wants_json(request):
        return JsonResponse({"message": _("Saved")})
    messages.success(request, _("Your settings are saved."))
    return redirect("chat:settings")


def _page(request: Request, form: AppearanceForm, status: int = 200) -> HttpResponse:
    context = page_context(request) | {"form": form, "page": "settings"}
    return render(request, "chat/settings.html", context, status=status)
