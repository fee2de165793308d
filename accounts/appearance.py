"""The theme and the text size of a user's pages, which the server renders: no page flashes in another theme.

The user's row has precedence. A cookie repeats it for the pages without a user: signing in, and errors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from django.conf import settings
from django.http import HttpRequest, HttpResponseBase

from accounts import language
from accounts.access import PUBLIC_VIEWS
from accounts.models import TextSize, Theme, User

COOKIE = "appearance"
COOKIE_SECONDS = 365 * 24 * 60 * 60


@dataclass(frozen=True)
class Appearance:
    """A theme and a text size; a new user has the defaults."""

    theme: str = Theme.SYSTEM.value
    text_size: str = TextSize.MEDIUM.value

    @classmethod
    def of_cookie(cls, value: str) -> Appearance:
        """Return the appearance that a cookie names; the default one for any other value."""
        theme, _dot, text_size = value.partition(".")
        if theme in Theme.values and text_size in TextSize.values:
            return cls(theme, text_size)
        return cls()

    @property
    def cookie(self) -> str:
        return f"{self.theme}.{self.text_size}"


class AppearanceMiddleware:
    """Sets `request.appearance` for the templates, and the cookie when it differs from the user's row."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        cookie = request.COOKIES.get(COOKIE, "")
        sent = Appearance.of_cookie(cookie)
        request.appearance = sent  # type: ignore[attr-defined] # for templates
        response = self.get_response(request)
        appearance = request.appearance  # type: ignore[attr-defined] # process_view or a view may have set it
        if appearance != sent:
            response.set_cookie(
                COOKIE,
                appearance.cookie,
                max_age=COOKIE_SECONDS,
                secure=settings.SESSION_COOKIE_SECURE,
                httponly=True,
                samesite="Lax",
            )
        return response

    def process_view(
        self, request: HttpRequest, view: Any, arguments: tuple[Any, ...], named: dict[str, Any]
    ) -> None:
        # accounts.access has loaded the user of every other view.
        if request.resolver_match and request.resolver_match.view_name in PUBLIC_VIEWS:
            return
        if isinstance(request.user, User):
            if request.user.language:
                language.choose(request, request.user.language)
            request.appearance = Appearance(request.user.theme, request.user.text_size)  # type: ignore[attr-defined]


def store(request: HttpRequest, user: User, appearance: Appearance) -> None:
    """Store an appearance for all devices of the user, and show it in the response to `request`."""
    User.objects.filter(pk=user.pk).update(theme=appearance.theme, text_size=appearance.text_size)
    request.appearance = appearance  # type: ignore[attr-defined] # for the middleware
