"""The uses of limits that Redis could not count."""

from __future__ import annotations

from django.db import models


class LimitUse(models.Model):
    """One use of a named limit; `key` is a digest of the name and of who used it. Written by uses.py alone."""

    key = models.CharField(max_length=24)
    used_at = models.DateTimeField()
    expires_at = models.DateTimeField()  # the end of the limit's longest period

    class Meta:
        db_table = "limit_use"
        default_permissions = ()
        indexes = [models.Index(fields=["key", "used_at"], name="limit_use_of_key")]

    def __str__(self) -> str:
        return f"use {self.pk}"
