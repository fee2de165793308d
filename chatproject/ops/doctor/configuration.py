"""Settings that cannot work together, by the system checks."""

from __future__ import annotations

from collections.abc import Iterator

from django.conf import settings
from django.core.checks import ERROR, run_checks

from chatproject.ops.doctor.finding import Finding, ok, problem, warning

PART = "settings"
SECRET_CHARACTERS = 40


def check() -> Iterator[Finding]:
    """Yield the messages of Django's and our own system checks, and of settings for development."""
    found = run_checks()
    for message in found:
        yield (problem if message.level >= ERROR else warning)(
            PART, message.msg, message.hint or ""
        )
    if settings.DEBUG:
        yield warning(
            PART,
            "DEBUG is 1: errors show source code and settings",
            "Remove DEBUG on a machine that others can reach.",
        )
    if len(settings.SECRET_KEY) < SECRET_CHARACTERS or len(set(settings.SECRET_KEY)) < 8:
        yield warning(
            PART,
            "SECRET_KEY is short, so sessions and links could be forged",
            "Write 50 random characters. All users sign in again then.",
        )
    if "*" in settings.ALLOWED_HOSTS:
        yield warning(
            PART,
            "ALLOWED_HOSTS is *, so links in mails can be forged",
            "Name the hosts of the site.",
        )
    if not found:
        yield ok(PART, "the system checks pass")
