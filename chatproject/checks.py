"""System checks for combinations of settings that cannot work."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.core.checks import CheckMessage, Error, Warning, register, run_checks
from django.core.exceptions import ImproperlyConfigured

from chat.llm import address

TAG = "parley"


def require() -> None:
    """Run the checks of this file. Raises ImproperlyConfigured with the errors, each with its hint.

    The web server calls it; commands of manage.py run all checks anyway.
    """
    found = run_checks(tags=[TAG])
    errors = [f"{one.msg} {one.hint}" for one in found if one.is_serious()]
    if errors:
        raise ImproperlyConfigured("\n".join(errors))


@register(TAG)
def check_provider(**kwargs: Any) -> list[CheckMessage]:
    """Check the text of the base URL, that OpenAI has a key, and that a default model is named."""
    found: list[CheckMessage] = []
    if wrong := address.malformed(settings.OPENAI_BASE_URL):
        found.append(
            Error(
                f"OPENAI_BASE_URL: {wrong}",
                hint="Write the address up to its version, for example https://api.openai.com/v1, or"
                " remove the variable.",
                id="parley.E005",
            )
        )
    host = "" if wrong else urlsplit(settings.OPENAI_BASE_URL).hostname
    if host == "api.openai.com" and not settings.OPENAI_API_KEY:
        found.append(
            Warning(
                "OPENAI_API_KEY is not set, so every reply will fail.",
                hint="Set OPENAI_API_KEY, or set OPENAI_BASE_URL to a server of your own.",
                id="parley.W001",
            )
        )
    if not settings.DEFAULT_MODEL:
        found.append(
            Error(
                "DEFAULT_MODEL is empty.",
                hint="Name a model that OPENAI_BASE_URL serves, for example DEFAULT_MODEL=gpt-4o-mini.",
                id="parley.E001",
            )
        )
    return found


@register(TAG)
def check_pool(**kwargs: Any) -> list[CheckMessage]:
    """Check that the threads of lib.db leave connections in the pool for synchronous views."""
    size = settings.DATABASES["default"]["OPTIONS"]["pool"]["max_size"]
    if size > settings.DB_THREADS:
        return []
    return [
        Error(
            f"DB_POOL_SIZE={size} leaves no connection besides those of the DB_THREADS={settings.DB_THREADS} threads.",
            hint="Set DB_POOL_SIZE to at least twice DB_THREADS.",
            id="parley.E002",
        )
    ]


@register(TAG)
def check_path(**kwargs: Any) -> list[CheckMessage]:
    """Check that the site is not to be served below a path."""
    if not settings.FORCE_SCRIPT_NAME:
        return []
    return [
        Error(
            f"FORCE_SCRIPT_NAME={settings.FORCE_SCRIPT_NAME}: the site works at the root of a host"
            " name, not below a path.",
            hint="Remove it, and give the site a host name of its own, for example chat.example.org.",
            id="parley.E010",
        )
    ]


@register(TAG)
def check_signup_credits(**kwargs: Any) -> list[CheckMessage]:
    """Check that an address that belongs to no one earns no credits."""
    is_verified = settings.ACCOUNT_EMAIL_VERIFICATION == "mandatory"
    if (
        not settings.BILLING
        or settings.SIGNUP_CREDITS == 0
        or settings.SIGNUP != "open"
        or is_verified
        or settings.ALLOW_UNVERIFIED_CREDITS
    ):
        return []
    return [
        Error(
            "SIGNUP_CREDITS is set, but accounts need no verified address (VERIFY_EMAIL=0): one person"
            " could collect credits with any number of made-up addresses.",
            hint="Set VERIFY_EMAIL=1, SIGNUP_CREDITS=0 or SIGNUP=approval; or"
            " ALLOW_UNVERIFIED_CREDITS=1 on a site whose users you know.",
            id="parley.E003",
        )
    ]


@register(TAG)
def check_mail(**kwargs: Any) -> list[CheckMessage]:
    """Check that mails, with their links, do not end up in the log of a production site."""
    if settings.DEBUG or not settings.MAIL_TRANSPORT.endswith("console.EmailBackend"):
        return []
    return [
        Error(
            "EMAIL_URL=console:// writes mails to the log, with links that reset passwords.",
            hint="Set EMAIL_URL=smtp://…, or remove it: a site works without mail. On a"
            " single machine file:///folder writes mails to files.",
            id="parley.E004",
        )
    ]
