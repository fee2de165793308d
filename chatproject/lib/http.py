"""The type of a signed-in user's request."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.http import HttpRequest

if TYPE_CHECKING:
    # For the type checker only: lib is a layer below accounts.
    from accounts.models import User


class Request(HttpRequest):
    """A request of a signed-in user: accounts.access refuses all others before the view."""

    user: User
