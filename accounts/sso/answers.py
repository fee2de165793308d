"""The page of a sign-in that failed."""

from __future__ import annotations

import logging

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render

from accounts.sso.errors import SENTENCES, SignInFailed
from accounts.sso.providers import IdentityProvider

logger = logging.getLogger(__name__)

STATUS = {"not_allowed": 403, "exists": 409}


def failed(request: HttpRequest, provider: IdentityProvider, error: SignInFailed) -> HttpResponse:
    """Show what happened and what to do; the reason goes to the log."""
    if error.reason:
        logger.warning("a sign-in by %s failed (%s): %s", provider.key, error.code, error.reason)
    context = {
        "sentence": SENTENCES[error.code] % {"name": provider.name},
        "code": error.code,
        "provider": provider,
    }
    return render(request, "sso/failed.html", context, status=STATUS.get(error.code, 400))
