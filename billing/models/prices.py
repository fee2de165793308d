from __future__ import annotations

from django.conf import settings
from django.db import models
from django.db.models import Q
from django.utils import timezone

from billing.models.base import CreditsField, at_least

# Micro-credits per million tokens: 1,000,000 credits, at the usual worth of a credit ten thousand
# dollars. What is above is a slip of the keyboard or of a unit.
HIGHEST_PRICE = 1_000_000 * 1_000_000


class ModelPrice(models.Model):
    """What a model costs from a moment on, until a later row takes over; never changed.

    `model` is the name that the provider knows the model by. All `*_per_m` are micro-credits per
    million tokens. `tiers` raises prices for long prompts: a list of
    `{"above": tokens, "in_per_m": …, "cached_in_per_m": …, "out_per_m": …}`, the highest `above`
    that the prompt exceeds counts for all of its tokens, and for the reply's; what it leaves out
    (`reasoning_per_m` too) stays as in the row. A model without a row is not offered; a free one
    has a row of zeros.
    """

    model = models.CharField(
        max_length=200, help_text="The name that the provider knows the model by."
    )
    effective_from = models.DateTimeField(default=timezone.now)
    in_per_m = CreditsField("input", help_text="Micro-credits per million tokens.")
    cached_in_per_m = CreditsField("cached input", help_text="Micro-credits per million tokens.")
    out_per_m = CreditsField("output", help_text="Micro-credits per million tokens.")
    reasoning_per_m = CreditsField(
        "reasoning", null=True, blank=True, help_text="Empty: the same as output."
    )
    request_fee = CreditsField(default=0, help_text="Micro-credits per call of the provider.")
    tiers = models.JSONField(default=list, blank=True)
    source = models.CharField(max_length=200, blank=True, help_text="Where the figures come from.")
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.PROTECT, related_name="+"
    )
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["model", "-effective_from"]
        constraints = [
            models.UniqueConstraint(fields=["model", "effective_from"], name="price_once_per_time"),
            models.CheckConstraint(
                condition=at_least(0, "in_per_m", "cached_in_per_m", "out_per_m", "request_fee")
                & (Q(reasoning_per_m=None) | Q(reasoning_per_m__gte=0)),
                name="price_not_negative",
                violation_error_message="A price is never negative.",
            ),
            models.CheckConstraint(
                condition=Q(
                    in_per_m__lte=HIGHEST_PRICE,
                    cached_in_per_m__lte=HIGHEST_PRICE,
                    out_per_m__lte=HIGHEST_PRICE,
                    request_fee__lte=HIGHEST_PRICE,
                )
                & (Q(reasoning_per_m=None) | Q(reasoning_per_m__lte=HIGHEST_PRICE)),
                name="price_not_absurd",
                violation_error_message="A price above 1,000,000 credits per million tokens is refused.",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.model} from {self.effective_from:%Y-%m-%d %H:%M}"

    def clean(self) -> None:
        from billing import pricing  # which needs this class

        pricing.validate(self)
