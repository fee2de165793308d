"""The sender of a request: by an API key with the needed scope, or by the session of a page of this site."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from django.conf import settings
from django.http import HttpRequest
from ninja.security import APIKeyCookie, HttpBearer
from ninja.utils import check_csrf

from accounts import api_keys
from accounts.mfa import factors
from accounts.models import ApiKey, Scope, User
from billing.metering import plan_limits
from chat.api.rest.errors import Problem
from chatproject.lib import rate_limits

SAFE_METHODS = {"GET", "HEAD", "OPTIONS"}
LIMIT = "api_requests"


@dataclass(frozen=True, slots=True)
class Sender:
    """The user of a request; its `key` or, from a page, `session`."""

    user: User
    key: ApiKey | None = None
    session: str = ""

    @property
    def may_read_usage(self) -> bool:
        """Whether the sender may read the figures of the account."""
        return self.key is None or Scope.USAGE in self.key.scopes


class ApiRequest(HttpRequest):
    """A request whose sender is known."""

    auth: Sender


class ByKey(HttpBearer):
    """An API key; a request that sends one is judged by it alone."""

    def __init__(self, scope: Scope) -> None:
        super().__init__()
        self._scope = scope

    def __call__(self, request: HttpRequest) -> Sender | None:
        """Return the sender; None without a key. Raises KeyRefused and RateLimited."""
        sent = request.headers.get("Authorization", "")
        if not sent.strip():
            return None
        key = api_keys.authenticate(sent, self._scope)
        api_keys.count_request(key)
        return Sender(key.user, key=key)

    def authenticate(self, request: HttpRequest, token: str) -> Any:
        """Not called: `__call__` reads the header."""
        raise NotImplementedError


class BySession(APIKeyCookie):
    """The cookie of a signed-in browser; a request that changes something needs the CSRF token."""

    param_name = settings.SESSION_COOKIE_NAME

    def __call__(self, request: HttpRequest) -> Sender | None:
        """Return the sender; None without a session, or a required second factor. Raises Problem and RateLimited."""
        user = request.user
        if not user.is_authenticated or factors.is_missing(user):
            return None
        if request.method not in SAFE_METHODS and check_csrf(request) is not None:
            raise Problem("csrf_failed")
        limit = plan_limits.limit_of(LIMIT, user.plan_id)
        rate_limits.hit(LIMIT, "user", user.pk, limit=limit)
        return Sender(user, session=request.session.session_key or "")

    def authenticate(self, request: HttpRequest, key: str | None) -> Any:
        """Not called: the session was read by Django's middleware."""
        raise NotImplementedError


def needs_key(scope: Scope) -> list[ByKey]:
    """Return the way to authenticate for an operation that a session may not use."""
    return [ByKey(scope)]


def needs(scope: Scope) -> list[ByKey | BySession]:
    """Return the ways to authenticate for an operation that needs a scope."""
    return [ByKey(scope), BySession()]
