"""Reading a public list of prices, in the format that LiteLLM publishes.

A JSON object of models, with US dollars per token; what of it is not needed here is passed over.
Dollars become micro-credits per million tokens without floating point, rounded up.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from fractions import Fraction
from math import ceil
from typing import Any

from django.core.exceptions import ValidationError

from billing.credits import MICRO
from billing.metering import pricing
from billing.models import ModelPrice

SAMPLE = "sample_spec"  # a key of the list that explains the others

# Modes that are paid by the token. Chat models are what the service offers.
CHAT_MODES = frozenset({"chat", "completion", "responses"})
TOKEN_MODES = CHAT_MODES | {"embedding"}

# Figures of the list are whole multiples of this; what is beyond is the noise of floating point.
STEP = Decimal("1e-12")  # US dollars per token

RATES = {
    "in_per_m": "input_cost_per_token",
    "cached_in_per_m": "cache_read_input_token_cost",
    "out_per_m": "output_cost_per_token",
    "reasoning_per_m": "output_cost_per_reasoning_token",
}
FIELD_OF = {name: field for field, name in RATES.items()}
# What costs as much as the rest of the input or the output where the list says nothing.
PARTS = {"cached_in_per_m": "in_per_m", "reasoning_per_m": "out_per_m"}
TIER = re.compile(rf"({'|'.join(RATES.values())})_above_(\d{{1,6}})k_tokens")
FIELDS = (*RATES, "request_fee", "tiers")


class Unreadable(Exception):
    """The file is no list of prices; the message says why."""


class Refused(Exception):
    """A model has no price in the list that could be used; the message says why."""


@dataclass(frozen=True, slots=True)
class Rate:
    """How dollars become credits: what a credit is worth, and what is put on top, in per cent."""

    credit_usd: Decimal
    markup: Decimal = Decimal(0)

    def micro(self, usd: Decimal, times: int) -> int:
        """Micro-credits for so many times so many dollars, rounded up."""
        worth = Fraction(usd) * times / Fraction(self.credit_usd)
        return ceil(worth * (1 + Fraction(self.markup) / 100) * MICRO)


class PriceList:
    """A list that has been read."""

    def __init__(self, text: str) -> None:
        """Raises Unreadable."""
        try:
            found = json.loads(text, parse_float=Decimal, parse_constant=_refuse_constant)
        except (ValueError, ArithmeticError, RecursionError) as error:
            raise Unreadable(f"it is not JSON: {error}") from error
        if not isinstance(found, dict) or not all(isinstance(v, dict) for v in found.values()):
            raise Unreadable("it is not an object whose keys are models and whose values objects")
        found.pop(SAMPLE, None)
        self._entries: dict[str, dict[str, Any]] = found
        self._by_tail: dict[str, list[str]] = defaultdict(list)
        for key in found:
            self._by_tail[_tail(key)].append(key)

    def chat_models(self) -> list[str]:
        """The keys of all models that chat, as they are in the list."""
        return [key for key, entry in self._entries.items() if _mode(entry) in CHAT_MODES]

    def find(self, name: str) -> str:
        """The key of a model: its name, or else the only one that ends alike after the last slash.

        Raises Refused when there is none, or more than one.
        """
        if name in self._entries:
            return name
        alike = self._by_tail.get(_tail(name), [])
        if not alike:
            raise Refused("it is not in the list")
        if len(alike) > 1:
            names = ", ".join(sorted(alike)[:4]) + (", …" if len(alike) > 4 else "")
            raise Refused(f"the list has several of that name: {names}")
        return alike[0]

    def price(self, key: str, rate: Rate, *, model: str, effective_from: datetime) -> ModelPrice:
        """The price that the list has under a key, for one of our models; not saved.

        Raises Refused for a price that is missing, negative, absurd, not by the token, or not
        allowed to begin then.
        """
        entry = self._entries[key]
        mode = _mode(entry)
        if mode not in TOKEN_MODES:
            raise Refused(f"models of mode {mode} are not paid by the token")
        if entry.get("tiered_pricing"):
            raise Refused("its prices are in tiered_pricing, which is not read: enter them by hand")
        fee = _usd(entry, "input_cost_per_request")
        price = ModelPrice(
            model=model,
            effective_from=effective_from,
            request_fee=0 if fee is None else rate.micro(fee, 1),
            **_per_million(_levels(entry), rate),
        )
        try:
            price.clean_fields()
            price.clean()
        except ValidationError as error:
            raise Refused(" ".join(dict.fromkeys(error.messages))) from error
        return price


def same(one: ModelPrice, other: ModelPrice) -> bool:
    """Whether two prices charge the same."""
    return all(getattr(one, field) == getattr(other, field) for field in FIELDS)


def _refuse_constant(constant: str) -> None:
    raise ValueError(f"{constant} is no number")


def _mode(entry: dict[str, Any]) -> str:
    return str(entry.get("mode", "chat"))


def _tail(name: str) -> str:
    return name.rpartition("/")[2]


def _levels(entry: dict[str, Any]) -> list[tuple[int, dict[str, Decimal]]]:
    """Dollars per token by the prompt tokens above which they count, from 0 on, each complete."""
    base: dict[str, Decimal] = {}
    for field, name in RATES.items():
        usd = _usd(entry, name)
        if usd is None and field in PARTS:
            usd = base[PARTS[field]]
        if usd is None:
            raise Refused(f"it has no {name}")
        base[field] = usd
    stated: dict[int, dict[str, Decimal]] = defaultdict(dict)
    for name in entry:
        matched = TIER.fullmatch(name)
        usd = _usd(entry, name) if matched else None
        if matched and usd is not None:
            stated[int(matched[2]) * 1_000][FIELD_OF[matched[1]]] = usd
    levels = [(0, base)]
    for above in sorted(stated):
        lower = levels[-1][1]
        level = lower | stated[above]
        for part, whole in PARTS.items():
            # What cost as much as the rest of its kind still does, unless the list says otherwise.
            if part not in stated[above] and lower[part] == lower[whole]:
                level[part] = level[whole]
        levels.append((above, level))
    return levels


def _usd(entry: dict[str, Any], name: str) -> Decimal | None:
    """Dollars, without the noise of floating point."""
    value = entry.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | Decimal):
        raise Refused(f"its {name} is not a number")
    value = Decimal(value)
    if value < 0:
        raise Refused(f"its {name} is negative")
    if value > 1:
        raise Refused(f"its {name} is absurd: {value} dollars")
    rounded = value.quantize(STEP)
    if value and not rounded:
        raise Refused(f"its {name} is too small to be right: {value} dollars")
    return rounded


def _per_million(levels: list[tuple[int, dict[str, Decimal]]], rate: Rate) -> dict[str, Any]:
    """The levels as fields of a ModelPrice."""
    (_, base), *tiers = [
        (above, {field: rate.micro(usd, pricing.MILLION) for field, usd in level.items()})
        for above, level in levels
    ]
    if all(level["reasoning_per_m"] == level["out_per_m"] for _, level in [(0, base), *tiers]):
        for _, level in [(0, base), *tiers]:
            del level["reasoning_per_m"]
    return base | {"tiers": [{"above": above} | level for above, level in tiers]}
