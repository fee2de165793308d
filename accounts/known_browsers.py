"""Known browsers: a signed cookie that names the users who signed in with this browser.

It lets a user try to sign in past the limits that others may have used up (accounts/sign_in_limits.py).
It replaces no password, and has a small limit of its own.
"""

from __future__ import annotations

import secrets

from django.conf import settings
from django.core import signing
from django.http import HttpRequest
from django.http.response import HttpResponseBase

COOKIE = "known_browser"
SALT = "accounts.known_browsers"
MAX_AGE = 180 * 24 * 60 * 60  # seconds since the last sign-in
MAX_USERS = 5  # that one browser remembers, the newest last


def remember(request: HttpRequest, response: HttpResponseBase, user_id: int) -> None:
    """Add a user who has just signed in to the cookie of the browser."""
    known = _read(request)
    token = known.pop(str(user_id), None) or secrets.token_urlsafe(9)
    newest = [*known.items(), (str(user_id), token)][-MAX_USERS:]
    response.set_cookie(
        COOKIE,
        signing.dumps(dict(newest), salt=SALT),
        max_age=MAX_AGE,
        secure=settings.SESSION_COOKIE_SECURE,
        httponly=True,
        samesite="Lax",
    )


def token_of(request: HttpRequest, user_id: int) -> str | None:
    """Return the name of this browser for a user who has signed in with it; else None."""
    return _read(request).get(str(user_id))


def is_known(request: HttpRequest) -> bool:
    """Whether any user has signed in with this browser."""
    return bool(_read(request))


def _read(request: HttpRequest) -> dict[str, str]:
    try:
        known: dict[str, str] = signing.loads(
            request.COOKIES.get(COOKIE, ""), salt=SALT, max_age=MAX_AGE
        )
    except signing.BadSignature:
        return {}
    return known
