from __future__ import annotations

from typing import Any

from django.conf import settings
from django.http import HttpRequest

from accounts.sso import providers, trusted_header
from chatproject.lib.mail import outbox


def site(request: HttpRequest) -> dict[str, Any]:
    """Add the installation's name, what its account pages offer, how long deleted chats are kept
    and whether it has a service worker, to the context of every page.

    `mail_is_delayed` makes a query, in the templates that use it.
    """
    return {
        "site_name": settings.SITE_NAME,
        "has_mail": outbox.is_configured(),
        "mail_is_delayed": outbox.is_delayed,
        "signup_is_open": settings.SIGNUP in ("open", "approval") and settings.PASSWORD_SIGN_IN,
        "identity_providers": providers.configured,
        "password_sign_in": settings.PASSWORD_SIGN_IN,
        "trusted_identity": trusted_header.identity_of(request) if settings.TRUSTED_HEADER else "",
        "deleted_chat_days": settings.DELETED_CHAT_DAYS,
        "service_worker": settings.SERVICE_WORKER,
    }
