"""Reader of a public list of prices in the format of LiteLLM's.

The list is a JSON object of models with US dollars per token; fields not needed here are ignored.
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
from functools import lru_cache
from math import ceil
from pathlib import Path
from typing import Any

from django.core.exceptions import ValidationError

from billing.credits import MICRO
from billing.metering import pricing
from billing.models import ModelPrice

SAMPLE = "sample_spec"  # the key of an entry that explains the others

# Modes that are paid by the token. The service offers chat models.
CHAT_MODES = frozenset({"chat", "completion", "responses"})
TOKEN_MODES = CHAT_MODES | {"embedding"}

# Figures of the list are whole multiples of this; smaller digits are floating-point noise.
STEP = Decimal("1e-12")  # US dollars per token

RATES = {
    "in_per_m": "input_cost_per_token",
    "cached_in_per_m": "cache_read_input_token_cost",
    "out_per_m": "output_cost_per_token",
    "reasoning_per_m": "output_cost_per_reasoning_token",
}
FIELD_OF = {name: field for field, name in RATES.items()}
# Parts of the input or the output, which cost as much as the whole where the list has no price.
PARTS = {"cached_in_per_m": "in_per_m", "reasoning_per_m": "out_per_m"}
TIER = re.compile(rf"({'|'.join(RATES.values())})_above_(\d{{1,6}})k_tokens")
FIELDS = (*RATES, "request_fee", "tiers")


class Unreadable(Exception):
    """The file is not a list of prices; the message gives the reason."""


class Refused(Exception):
    """The list has no usable price for a model; the message gives the reason."""


@dataclass(frozen=True, slots=True)
class Rate:
    """The exchange rate: US dollars per credit, and a markup in per cent."""

    credit_usd: Decimal
    markup: Decimal = Decimal(0)

    def micro(self, usd: Decimal, times: int) -> int:
        """Return micro-credits for `times` times `usd` dollars, rounded up."""
        worth = Fraction(usd) * times / Fraction(self.credit_usd)
        return ceil(worth * (1 + Fraction(self.markup) / 100) * MICRO)


class PriceList:
    """The prices of a file."""

    def __init__(self, text: str) -> None:
        """Parse the file's text. Raises Unreadable."""

        def refuse(constant: str) -> None:
            raise ValueError(f"{constant} is not a number")

        try:
            found = json.loads(text, parse_float=Decimal, parse_constant=refuse)
        except (ValueError, ArithmeticError, RecursionError) as error:
            raise Unreadable(f"it is not JSON: {error}") from error
        if not isinstance(found, dict) or not all(isinstance(v, dict) for v in found.values()):
            raise Unreadable("it is not an object whose keys are models and whose values objects")
        found.pop(SAMPLE, None)
        self._entries: dict[str, dict[str, Any]] = found
        self._by_tail: dict[str, list[str]] = defaultdict(list)
        for key in found:
            self._by_tail[key.rpartition("/")[2]].append(key)

    def chat_models(self) -> list[str]:
        """Return the keys of all chat models."""
        return [key for key, entry in self._entries.items() if mode_of(entry) in CHAT_MODES]

    def find(self, name: str) -> str:
        """Return the key of a model: its name, or the only key with the same last path segment.

        Raises Refused if there is none, or more than one.
        """
        if name in self._entries:
            return name
        alike = self._by_tail.get(name.rpartition("/")[2], [])
        if not alike:
            raise Refused("it is not in the list")
        if len(alike) > 1:
            names = ", ".join(sorted(alike)[:4]) + (", …" if len(alike) > 4 else "")
            raise Refused(f"the list has several of that name: {names}")
        return alike[0]

    def entry(self, key: str) -> dict[str, Any]:
        """Return the entry under a key, with its sizes."""
        return self._entries[key]

    def price(self, key: str, rate: Rate, *, model: str, effective_from: datetime) -> ModelPrice:
        """Build a price from the entry under a key: see `price_of`."""
        return price_of(self._entries[key], rate, model=model, effective_from=effective_from)


@lru_cache(maxsize=1)
def _read(path: str, changed_at: int) -> PriceList:
    return PriceList(Path(path).read_text(encoding="utf-8"))


def read_list(path: str) -> PriceList:
    """Return the list in a file, parsed anew when it has changed. Raises Unreadable."""
    try:
        return _read(path, Path(path).stat().st_mtime_ns)
    except (OSError, UnicodeDecodeError) as error:
        raise Unreadable(str(error)) from error


def price_of(
    entry: dict[str, Any], rate: Rate, *, model: str, effective_from: datetime
) -> ModelPrice:
    """Build (without saving) the price of one of our models from an entry of a list.

    Raises Refused for a price that is missing, negative, absurd, not per token, or not allowed
    to begin at `effective_from`.
    """
    mode = mode_of(entry)
    if mode not in TOKEN_MODES:
        raise Refused(f"models of mode {mode} are not paid by the token")
    if entry.get("tiered_pricing"):
        raise Refused("its prices are in tiered_pricing, which is not read: enter them by hand")
    fee = _usd(entry, "input_cost_per_request")
    (_, base), *tiers = [
        (above, {field: rate.micro(usd, pricing.MILLION) for field, usd in level.items()})
        for above, level in _levels(entry)
    ]
    levels = [base, *(level for _, level in tiers)]
    if all(level["reasoning_per_m"] == level["out_per_m"] for level in levels):
        for level in levels:
            del level["reasoning_per_m"]
    price = ModelPrice(
        model=model,
        effective_from=effective_from,
        request_fee=0 if fee is None else rate.micro(fee, 1),
        tiers=[{"above": above} | level for above, level in tiers],
        **base,
    )
    try:
        price.clean_fields()
        price.clean()
    except ValidationError as error:
        raise Refused(" ".join(dict.fromkeys(error.messages))) from error
    return price


def same(one: ModelPrice, other: ModelPrice) -> bool:
    """Return whether two prices charge the same."""
    return all(getattr(one, field) == getattr(other, field) for field in FIELDS)


def mode_of(entry: dict[str, Any]) -> str:
    """Return the kind of a model; an entry without one is a chat model."""
    return str(entry.get("mode", "chat"))


def _levels(entry: dict[str, Any]) -> list[tuple[int, dict[str, Decimal]]]:
    """Return complete tables of dollars per token, by the prompt tokens above which each applies."""
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
            # A part that cost as much as its whole still does, unless the list names its price.
            if part not in stated[above] and lower[part] == lower[whole]:
                level[part] = level[whole]
        levels.append((above, level))
    return levels


def _usd(entry: dict[str, Any], name: str) -> Decimal | None:
    """Return a figure in dollars without floating-point noise; None without one."""
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
