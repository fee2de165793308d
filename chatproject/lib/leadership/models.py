"""The lease rows of leaders."""

from __future__ import annotations

from django.db import models


class Leadership(models.Model):
    """The leader among the processes of one kind, and the end of its lease by the database's clock.

    Written by lease.py alone.
    """

    name = models.CharField(max_length=40, primary_key=True)
    holder = models.CharField(max_length=300)
    renewed_at = models.DateTimeField()
    expires_at = models.DateTimeField()

    class Meta:
        db_table = "leadership"
        verbose_name = "leader"
        verbose_name_plural = "leaders"
        default_permissions = ()

    def __str__(self) -> str:
        return self.name
