"""How staff type amounts: credits instead of micro-credits, money with its decimals."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from django import forms

from billing import credits

# What a line of tiers calls each price, in its order.
TIER_WORDS = {
    "input": "in_per_m",
    "cached": "cached_in_per_m",
    "output": "out_per_m",
    "reasoning": "reasoning_per_m",
}


class CreditsFormField(forms.Field):
    """Credits with up to six decimals; its value is whole micro-credits, or None when empty."""

    widget = forms.TextInput(attrs={"inputmode": "decimal", "class": "vTextField", "size": "20"})

    def __init__(self, *, least: int | None = None, **options: Any) -> None:
        self.least = least
        super().__init__(**options)

    def to_python(self, value: Any) -> int | None:
        if value is None or (isinstance(value, str) and not value.strip()):
            return None
        try:
            micro = credits.parse(str(value).replace(credits.MINUS, "-"))
        except ValueError as error:
            raise forms.ValidationError(
                "Write a number of credits with at most six decimals, for example 12.5."
            ) from error
        if self.least is not None and micro < self.least:
            raise forms.ValidationError(f"Write at least {credits.exact(self.least)}.")
        return micro

    def prepare_value(self, value: Any) -> Any:
        return credits.exact(value) if isinstance(value, int) else value

    def has_changed(self, initial: Any, data: Any) -> bool:
        try:
            return bool(self.to_python(data) != initial)
        except forms.ValidationError:
            return True


class TiersFormField(forms.Field):
    """Prices of long prompts, one tier a line: `200000: input 2.5, cached 0.25, output 15`."""

    widget = forms.Textarea(attrs={"rows": "3", "cols": "60"})

    def to_python(self, value: Any) -> list[dict[str, int]]:
        tiers = [self._tier(line) for line in (value or "").splitlines() if line.strip()]
        return sorted(tiers, key=lambda tier: tier["above"])

    def _tier(self, line: str) -> dict[str, int]:
        above, _, prices = line.partition(":")
        try:
            tier = {"above": int(above.replace(",", ""))}
            for price in prices.split(","):
                word, amount = price.split()
                tier[TIER_WORDS[word.lower()]] = credits.parse(amount)
        except (ValueError, KeyError) as error:
            raise forms.ValidationError(
                f"“{line.strip()}” cannot be read. Write for example 200000: input 2.5, output 15."
            ) from error
        return tier

    def prepare_value(self, value: Any) -> Any:
        return show_tiers(value) if isinstance(value, list) else value


def show_tiers(tiers: list[dict[str, int]]) -> str:
    """Tiers as they are typed, one a line."""
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
    """An amount of money in minor units. Raises ValidationError when it has too many decimals."""
    value = amount.scaleb(credits.EXPONENTS.get(currency, 2))
    if value != value.to_integral_value():
        raise forms.ValidationError(f"{currency} has no such fraction: write fewer decimals.")
    return int(value)


def major(minor_units: int, currency: str) -> Decimal:
    """An amount in minor units as the number that people write."""
    return Decimal(minor_units).scaleb(-credits.EXPONENTS.get(currency, 2))
