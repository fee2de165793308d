from __future__ import annotations

from datetime import timedelta
from itertools import pairwise
from typing import Any

from django.conf import settings
from django.core.exceptions import ValidationError
from django.db import models
from django.db.models import Q
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from billing.models.base import CreditsField, at_least

# Micro-credits per million tokens: 1,000,000 credits, usually worth ten thousand dollars. A higher
# price is a typing error or has the wrong unit.
HIGHEST_PRICE = 1_000_000 * 1_000_000

# A form that was opened a moment ago may still be submitted.
LATENESS = timedelta(minutes=1)

TIER_PRICES = ("in_per_m", "cached_in_per_m", "out_per_m", "reasoning_per_m")


class ModelPrice(models.Model):
    """The price of a model from `effective_from` until a later row takes effect; never changed.

    `model` is the provider's name of the model. All `*_per_m` are micro-credits per million tokens.
    `tiers` changes prices for long prompts: in a list of
    `{"above": tokens, "in_per_m": …, "cached_in_per_m": …, "out_per_m": …}` the highest `above` that
    the prompt exceeds applies to all tokens of the prompt and the reply; prices that the tier leaves
    out (also `reasoning_per_m`) stay as in the row. A model without a row is not offered; a
    free model has a row of zeros.
    """

    model = models.CharField(
        max_length=200, help_text=gettext_lazy("The name that the provider knows the model by.")
    )
    effective_from = models.DateTimeField(default=timezone.now)
    in_per_m = CreditsField("input", help_text=gettext_lazy("Micro-credits per million tokens."))
    cached_in_per_m = CreditsField(
        "cached input", help_text=gettext_lazy("Micro-credits per million tokens.")
    )
    out_per_m = CreditsField("output", help_text=gettext_lazy("Micro-credits per million tokens."))
    reasoning_per_m = CreditsField(
        "reasoning", null=True, blank=True, help_text=gettext_lazy("Empty: the same as output.")
    )
    request_fee = CreditsField(
        default=0, help_text=gettext_lazy("Micro-credits per call of the provider.")
    )
    tiers = models.JSONField(default=list, blank=True)
    source = models.CharField(
        max_length=200, blank=True, help_text=gettext_lazy("Where the figures come from.")
    )
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
                violation_error_message=gettext_lazy("A price is never negative."),
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
                violation_error_message=gettext_lazy(
                    "A price above 1,000,000 credits per million tokens is refused."
                ),
            ),
        ]

    def __str__(self) -> str:
        return f"{self.model} from {self.effective_from:%Y-%m-%d %H:%M}"

    def clean(self) -> None:
        """Raise ValidationError, by field, for a price that must not be published.

        Such a price is negative or absurdly high, changes the past of a model that already has a
        price, or has malformed tiers. Fields that are None are left to the form's own validation.
        """
        errors: dict[str, str] = {}
        for field in (*TIER_PRICES, "request_fee"):
            value = getattr(self, field)
            if value is not None and (problem := price_problem(value)):
                errors[field] = problem
        moment: Any = self.effective_from  # None if a form could not parse it
        others = ModelPrice.objects.filter(model=self.model).exclude(pk=self.pk)
        if moment is not None and moment < timezone.now() - LATENESS and others.exists():
            errors["effective_from"] = _(
                "This model already has a price, and past charges stay as they are: choose a time that "
                "has not passed."
            )
        if problem := tiers_problem(self.tiers):
            errors["tiers"] = problem
        if errors:
            raise ValidationError(errors)


def price_problem(value: Any) -> str:
    """Return a sentence on why a value is not a price; empty for a valid price."""
    # JSON has true and 1.5, and for Python true is an integer.
    if not isinstance(value, int) or isinstance(value, bool):
        return _("A price is a whole number of micro-credits.")
    if value < 0:
        return _("A price is never negative.")
    if value > HIGHEST_PRICE:
        return _("A price above 1,000,000 credits per million tokens is refused.")
    return ""


def tiers_problem(tiers: Any) -> str:
    """Return a sentence on why a value is not a list of tiers; empty for valid tiers."""
    if not isinstance(tiers, list):
        return _('Tiers are a list: [{"above": 200000, "in_per_m": 1, "out_per_m": 2}].')
    for tier in tiers:
        above = tier.get("above") if isinstance(tier, dict) else None
        if not isinstance(above, int) or isinstance(above, bool) or above <= 0:
            return _(
                'Each tier names the prompt tokens above which it applies: {"above": 200000, …}.'
            )
        unknown = set(tier) - {"above", *TIER_PRICES}
        if unknown:
            return _("A tier has no %(name)s, only above, %(names)s.") % {
                "name": repr(min(unknown)),
                "names": ", ".join(TIER_PRICES),
            }
        if len(tier) == 1:
            return _("Each tier names at least one price.")
        for name in TIER_PRICES:
            if name in tier and (problem := price_problem(tier[name])):
                return f"{name} above {above} tokens: {problem}"
    if any(lower["above"] >= higher["above"] for lower, higher in pairwise(tiers)):
        return _("Tiers are sorted by the tokens above which they apply, each of them once.")
    return ""
