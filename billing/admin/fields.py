"""Form fields and conversions of amounts that staff type: tiers of prices, money with its decimals."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from django import forms
from django.utils.translation import gettext as _

from billing import credits

# The name of each price in a line of tiers, in order.
TIER_WORDS = {
    "input": "in_per_m",
    "cached": "cached_in_per_m",
    "output": "out_per_m",
    "reasoning": "reasoning_per_m",
}


class TiersFormField(forms.Field):
    """Prices of long prompts, one tier a line: `200000: input 2.5, cached 0.25, output 15`."""

    widget = forms.Textarea(attrs={"rows": "3", "cols": "60"})

    def to_python(self, value: Any) -> list[dict[str, int]]:
        tiers = [self._tier(line) for line in (value or "").splitlines() if line.strip()]
        return sorted(tiers, key=lambda tier: tier["above"])

    def _tier(self, line: str) -> dict[str, int]:
        above, _colon, prices = line.partition(":")
        try:
            tier = {"above": int(above.replace(",", ""))}
            for price in prices.split(","):
                word, amount = price.split()
                tier[TIER_WORDS[word.lower()]] = credits.parse(amount)
        except (ValueError, KeyError) as error:
            raise forms.ValidationError(
                _("“%(strip)s” cannot be read. Enter for example 200000: input 2.5, output 15.")
                % {"strip": line.strip()}
            ) from error
        return tier

    def prepare_value(self, value: Any) -> Any:
        return show_tiers(value) if isinstance(value, list) else value


def show_tiers(tiers: list[dict[str, int]]) -> str:
    """Return tiers as they are typed, one a line."""
    lines = []
    for tier in tiers:
        prices = [
            f"{word} {credits.exact(tier[name])}"
            for word, name in TIER_WORDS.items()
            if name in tier
        ]
        lines.append(f"{tier['above']}: {', '.join(prices)}")
    return "\n".join(lines)


def minor(amount: Decimal, currency: str) -> int:
    """Return an amount of money in minor units. Raises ValidationError for too many decimals."""
    value = amount.scaleb(credits.EXPONENTS.get(currency, 2))
    if value != value.to_integral_value():
        raise forms.ValidationError(f"{currency} does not have that many decimals.")
    return int(value)


def major(minor_units: int, currency: str) -> Decimal:
    """Return an amount in minor units as the decimal number that people write."""
    return Decimal(minor_units).scaleb(-credits.EXPONENTS.get(currency, 2))
