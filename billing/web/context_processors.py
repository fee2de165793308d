"""Variables that every template may use."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.http import HttpRequest
from django.utils.functional import SimpleLazyObject

from billing.reports import balances
from billing.reports.balances import Balance


def balance(request: HttpRequest) -> dict[str, Any]:
    """Add the signed-in user's balance, which is read at its first use in a page.

    It is None for visitors, and where billing is switched off.
    """

    def read() -> Balance | None:
        user = getattr(request, "user", None)
        if not settings.BILLING or user is None or not user.is_authenticated:
            return None
        return balances.of_user(user.pk)

    return {"balance": SimpleLazyObject(read)}
