"""Parts that the tables of billing share."""

from __future__ import annotations

from uuid import UUID

import uuid_utils.compat
from django.db import models
from django.db.models import Q


def new_id() -> UUID:
    """Return a new UUID of version 7 (RFC 9562): such keys sort by creation time."""
    return uuid_utils.compat.uuid7()


def known(field: str, values: str, name: str) -> models.CheckConstraint:
    """Return a constraint that a field has one of the values, which are separated by spaces.

    The values are spelled out, since a `Meta` class cannot access the choices of its model's class.
    """
    return models.CheckConstraint(condition=Q(**{f"{field}__in": values.split()}), name=name)


def at_least(minimum: int, *fields: str) -> Q:
    """Return the condition that all of the fields are at least `minimum`."""
    condition = Q()
    for field in fields:
        condition &= Q(**{f"{field}__gte": minimum})
    return condition


# A whole number of micro-credits.
CreditsField = models.BigIntegerField
