"""Entry points of jobs. Redis stores their paths: a renamed function must keep its old name for one release."""

from __future__ import annotations

from django.utils import timezone

from accounts.privacy import erase


def purge() -> None:
    """Purge the accounts that are due."""
    erase.run(timezone.now())
