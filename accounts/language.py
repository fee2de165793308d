"""The language of a user's pages, sockets and mails.

The user's row has precedence. A cookie repeats it for the pages without a user: signing in, and errors. A
visitor without a cookie gets the language that the browser asks for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from allauth.account.signals import user_logged_in
from django.conf import settings
from django.dispatch import receiver
from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django.shortcuts import redirect
from django.utils import translation
from django.utils.cache import patch_vary_headers
from django.utils.http import url_has_allowed_host_and_scheme
from django.views.decorators.http import require_POST

from accounts.models import User
from chatproject.lib import languages

COOKIE_SECONDS = 365 * 24 * 60 * 60


class LanguageMiddleware:
    """Activates the language of each request, and sets the cookie when another was chosen.

    It loads no user: accounts.appearance activates the language of the row.
    """

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        _activate(request, translation.get_language_from_request(request))
        response = self.get_response(request)
        chosen = getattr(request, "chosen_language", "")
        if chosen and chosen != request.COOKIES.get(settings.LANGUAGE_COOKIE_NAME):
            response.set_cookie(
                settings.LANGUAGE_COOKIE_NAME,
                chosen,
                max_age=COOKIE_SECONDS,
                secure=settings.SESSION_COOKIE_SECURE,
                httponly=True,
                samesite="Lax",
            )
        if response.get("Content-Type", "").startswith("text/html"):
            response.headers.setdefault("Content-Language", languages.active())
            patch_vary_headers(response, ("Accept-Language", "Cookie"))
        return response


def choose(request: HttpRequest, code: str) -> None:
    """Show the response to `request` in a language, and keep it in the cookie."""
    request.chosen_language = languages.known(code)  # type: ignore[attr-defined] # for the middleware
    _activate(request, code)


def _activate(request: HttpRequest, code: str) -> None:
    language = languages.known(code)
    translation.activate(language)
    request.LANGUAGE_CODE = language


def store(request: HttpRequest, user: User, code: str) -> None:
    """Store a language for all devices of the user, and show it in the response to `request`."""
    User.objects.filter(pk=user.pk).update(language=languages.known(code))
    choose(request, code)


@receiver(user_logged_in, dispatch_uid="accounts.language")
def signed_in(request: HttpRequest, user: User, **kwargs: Any) -> None:
    """Store the language in which a user signs in or up for the first time, for mails and other devices."""
    if user.language:
        choose(request, user.language)
    else:
        store(request, user, languages.active())


@require_POST
def visitor_language(request: HttpRequest) -> HttpResponse:
    """Store the language that a visitor chooses on a sign-in page in the cookie, and show the page again."""
    choose(request, request.POST.get("language", ""))
    target = request.POST.get("next", "")
    is_own = url_has_allowed_host_and_scheme(
        target, allowed_hosts={request.get_host()}, require_https=request.is_secure()
    )
    return redirect(target if is_own and target.startswith("/") else settings.LOGIN_URL)
