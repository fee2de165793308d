"""A client that stays signed in while it walks over all pages, those that sign out included."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.http import HttpResponse
from django.test import Client

from accounts.models import User
from chatproject.lib.env import Limit


def without_limits(settings: Any) -> None:
    """Switch the named limits off for a walk over all pages."""
    settings.RATE_LIMITS = {name: Limit(()) for name in settings.RATE_LIMITS}


class Visitor:
    """Requests as a user, or as a visitor without one. Exceptions become answers with 500."""

    def __init__(self, user: User | None = None) -> None:
        self._user = user
        self._enter()

    def request(self, method: str, address: str, *args: Any, **options: Any) -> HttpResponse:
        """Make a request with this method, as Django's test client does."""
        response: HttpResponse = getattr(self._client, method)(address, *args, **options)
        if self._user is None or self._session() != self._key:
            self._enter()
        return response

    def _enter(self) -> None:
        self._client = Client(raise_request_exception=False)
        if self._user is not None:
            self._client.force_login(self._user)
        self._key = self._session()

    def _session(self) -> str:
        cookie = self._client.cookies.get(settings.SESSION_COOKIE_NAME)
        return cookie.value if cookie else ""
