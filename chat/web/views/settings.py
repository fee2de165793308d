"""The pages of a user's own settings."""

from __future__ import annotations

from django.conf import settings as django_settings
from django.contrib import messages
from django.http import HttpResponse, JsonResponse
from django.shortcuts import redirect, render
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods, require_safe

from accounts import appearance, language
from accounts.appearance import Appearance
from accounts.forms import AppearanceForm
from accounts.models import User
from chat import protocol
from chat.push import vapid
from chat.streaming import user_channel
from chat.web.pages import page_context
from chat.web.responses import wants_json
from chatproject.lib import languages
from chatproject.lib.http import Request


@require_http_methods(["GET", "HEAD", "POST"])
@never_cache
def settings(request: Request) -> HttpResponse:
    """Show the settings; store those that a form posts, and publish them to the user's other pages."""
    user = request.user
    if request.method != "POST":
        return _page(request, AppearanceForm({"theme": user.theme, "text_size": user.text_size}))
    if "language" in request.POST:
        if request.POST["language"] not in languages.CODES:
            shown = AppearanceForm({"theme": user.theme, "text_size": user.text_size})
            return _page(request, shown, status=400)
        language.store(request, user, request.POST["language"])
        messages.success(request, _("Your settings are saved."))
        return redirect("chat:settings")
    if "hide_hints" in request.POST:
        User.objects.filter(pk=user.pk).update(hints_hidden=True)
        return redirect("chat:new")
    if "keyboard" in request.POST:
        is_on = "single_keys" in request.POST
        User.objects.filter(pk=user.pk).update(single_keys=is_on)
        return _saved(request, Appearance(user.theme, user.text_size), single_keys=is_on)
    form = AppearanceForm(request.POST)
    if not form.is_valid():
        if wants_json(request):
            return JsonResponse({"message": _("Choose one of the options.")}, status=400)
        return _page(request, form, status=400)
    chosen = Appearance(**form.cleaned_data)
    appearance.store(request, user, chosen)
    return _saved(request, chosen, single_keys=user.single_keys)


def _saved(request: Request, shown: Appearance, *, single_keys: bool) -> HttpResponse:
    """Publish the settings to the user's other pages, and answer the form that has changed one."""
    user_channel.announce_settings(
        request.user.pk,
        protocol.SettingsChanged(
            theme=shown.theme, text_size=shown.text_size, single_keys=single_keys
        ),
    )
    if wants_json(request):
        return JsonResponse({"message": _("Saved")})
    messages.success(request, _("Your settings are saved."))
    return redirect("chat:settings")


def _page(request: Request, form: AppearanceForm, status: int = 200) -> HttpResponse:
    context = page_context(request) | {"form": form, "page": "settings"}
    return render(request, "chat/settings.html", context, status=status)


@require_safe
@never_cache
def notifications(request: Request) -> HttpResponse:
    """Show the devices that receive notifications."""
    context = page_context(request) | {
        "page": "settings",
        "devices": request.user.push_subscriptions.order_by("-pk"),
        "session_key": request.session.session_key,
        "push_key": vapid.current().public if django_settings.WEB_PUSH else "",
    }
    return render(request, "chat/notifications.html", context)
