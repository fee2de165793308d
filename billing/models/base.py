"""What the tables of billing share."""

from __future__ import annotations

from uuid import UUID

import uuid_utils.compat
from django.db import models
from django.db.models import Q


def new_id() -> UUID:
    """A fresh UUID of version 7 (RFC 9562): such keys sort by time of making."""
    return uuid_utils.compat.uuid7()


def known(field: str, values: str, name: str) -> models.CheckConstraint:
    """The database refuses what is not one of the values, which are separated by spaces.

    Spelled out where it is used: a `Meta` does not see the choices of the class around it.
    """
    return models.CheckConstraint(condition=Q(**{f"{field}__in": values.split()}), name=name)


def at_least(least: int, *fields: str) -> Q:
    """All of the fields are at least so much."""
    condition = Q()
    for field in fields:
        condition &= Q(**{f"{field}__gte": least})
    return condition


# A whole number of micro-credits.
CreditsField = models.BigIntegerField
