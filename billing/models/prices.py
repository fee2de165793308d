from __future__ import annotations

from datetime import timedelta
from itertools import pairwise
from typing import Any

from django.conf import settings
from django.core.exceptions import ValidationError
from django.db import models
from django.db.models import Q
from django.utils import timezone

from billing.models.base import CreditsField, at_least

# Micro-credits per million tokens: 1,000,000 credits, at the usual worth of a credit ten thousand
# dollars. What is above is a slip of the keyboard or of a unit.
HIGHEST_PRICE = 1_000_000 * 1_000_000

# A form that was opened a moment ago may still be sent.
LATENESS = timedelta(minutes=1)

TIER_PRICES = ("in_per_m", "cached_in_per_m", "out_per_m", "reasoning_per_m")


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
        """Raise ValidationError, by field, for a price that must not be published.

        Such a price is negative or absurdly high, changes the past of a model that has a price
        already, or has malformed tiers. A form refuses fields that are None itself.
        """
        errors: dict[str, str] = {}
        for field in (*TIER_PRICES, "request_fee"):
            value = getattr(self, field)
            wrong = None if value is None else _wrong_price(value)
            if wrong:
                errors[field] = wrong
        if _is_too_late(self):
            errors["effective_from"] = (
                "This model has a price already, and what was charged by it stays: choose a time that "
                "has not passed."
            )
        wrong = _wrong_tiers(self.tiers)
        if wrong:
            errors["tiers"] = wrong
        if errors:
            raise ValidationError(errors)


def _wrong_price(value: Any) -> str:
    # JSON knows true and 1.5, and Python takes the first for a number.
    if not isinstance(value, int) or isinstance(value, bool):
        return "A price is a whole number of micro-credits."
    if value < 0:
        return "A price is never negative."
    if value > HIGHEST_PRICE:
        return "A price above 1,000,000 credits per million tokens is refused."
    return ""


def _is_too_late(price: ModelPrice) -> bool:
    moment: Any = price.effective_from  # None when a form could not read it
    if moment is None or moment >= timezone.now() - LATENESS:
        return False
    return ModelPrice.objects.filter(model=price.model).exclude(pk=price.pk).exists()


def _wrong_tiers(tiers: Any) -> str:
    if not isinstance(tiers, list):
        return 'Tiers are a list: [{"above": 200000, "in_per_m": 1, "out_per_m": 2}].'
    for tier in tiers:
        if not isinstance(tier, dict) or not _is_whole(tier.get("above")):
            return 'Each tier names the prompt tokens above which it counts: {"above": 200000, …}.'
        unknown = set(tier) - {"above", *TIER_PRICES}
        if unknown:
            return f"A tier has no {min(unknown)!r}: it knows above, {', '.join(TIER_PRICES)}."
        if len(tier) == 1:
            return "Each tier names at least one price."
        for name in TIER_PRICES:
            wrong = _wrong_price(tier[name]) if name in tier else ""
            if wrong:
                return f"{name} above {tier['above']} tokens: {wrong}"
    if any(lower["above"] >= higher["above"] for lower, higher in pairwise(tiers)):
        return "Tiers stand in the order of the tokens above which they count, each once."
    return ""


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
