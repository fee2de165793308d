from __future__ import annotations

from django.conf import settings
from django.db import models
from django.db.models import F, Q
from django.utils.translation import gettext_lazy

from billing.models.accounts import LedgerEntry
from billing.models.base import CreditsField


class PromoCode(models.Model):
    """A promo code, which grants credits to users who enter it."""

    code = models.CharField(
        max_length=40, unique=True, help_text=gettext_lazy("Kept in capital letters.")
    )
    credits = CreditsField(help_text=gettext_lazy("Micro-credits per redemption."))
    max_redemptions = models.PositiveIntegerField()
    per_user = models.PositiveSmallIntegerField(default=1)
    redeemed = models.PositiveIntegerField(default=0, editable=False)
    valid_from = models.DateTimeField(null=True, blank=True)
    valid_to = models.DateTimeField(null=True, blank=True)
    lot_days = models.PositiveIntegerField(
        null=True, blank=True, default=90, help_text="Days until the credits expire; empty: never."
    )
    active = models.BooleanField(default=True)
    note = models.CharField(max_length=300, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["code"]
        constraints = [
            models.CheckConstraint(
                condition=Q(redeemed__lte=F("max_redemptions"), credits__gt=0),
                name="promo_within_its_number",
            ),
            models.CheckConstraint(
                condition=Q(code__regex=r"^[A-Z0-9_-]+$"),
                name="promo_code_form",
                violation_error_message=gettext_lazy(
                    "Use capital letters, digits, hyphens and underscores."
                ),
            ),
        ]

    def __str__(self) -> str:
        return self.code


class PromoRedemption(models.Model):
    """One use of a promo code; `number` counts the uses by the same user from 1."""

    code = models.ForeignKey(PromoCode, on_delete=models.PROTECT, related_name="redemptions")
    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="+")
    number = models.PositiveSmallIntegerField()
    entry = models.OneToOneField(LedgerEntry, on_delete=models.PROTECT, related_name="redemption")
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["-id"]
        constraints = [
            models.UniqueConstraint(fields=["code", "user", "number"], name="redemption_once"),
        ]

    def __str__(self) -> str:
        return f"{self.code_id} by {self.user_id}"
