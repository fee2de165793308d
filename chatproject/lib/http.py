from __future__ import annotations

from typing import TYPE_CHECKING

from django.http import HttpRequest

if TYPE_CHECKING:
    # For the type checker alone: billing is a layer below accounts.
    from accounts.models import User


class Request(HttpRequest):
    """Of somebody signed in: accounts.access lets nobody else through to the views of billing."""

    user: User
