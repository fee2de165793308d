"""Records for operators: audited actions of staff, results of ledger checks, invoice numbers."""

from __future__ import annotations

from django.conf import settings
from django.db import models
from django.utils.translation import gettext_lazy


class AuditRecord(models.Model):
    """An audited action of staff on money; never changed."""

    actor = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="+")
    action = models.CharField(max_length=40)
    target = models.CharField(max_length=200)
    before = models.JSONField(default=dict)
    after = models.JSONField(default=dict)
    reason = models.CharField(max_length=300, blank=True)
    ip = models.GenericIPAddressField(null=True, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["-id"]

    def __str__(self) -> str:
        return f"{self.action} {self.target}"


class LedgerCheck(models.Model):
    """The result of one `check_ledger`; the staff report shows the newest."""

    started_at = models.DateTimeField()
    ended_at = models.DateTimeField(auto_now_add=True)
    is_full = models.BooleanField(default=True)
    entries = models.BigIntegerField(help_text=gettext_lazy("Ledger entries that were looked at."))
    problems = models.JSONField(default=list)

    class Meta:
        ordering = ["-id"]

    def __str__(self) -> str:
        return f"check of {self.started_at:%Y-%m-%d %H:%M}"


class InvoiceCounter(models.Model):
    """The last invoice number of a series. Numbers have no gaps: it is increased under its lock."""

    series = models.CharField(max_length=20, primary_key=True)
    last = models.PositiveBigIntegerField(default=0)

    def __str__(self) -> str:
        return f"{self.series} {self.last}"
