"""The cost of a call of a model: whole micro-credits, rounded up once per call.

A price is a row that never changes; the one in force is the newest whose time has come. A model
without a price in force is not offered.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from django.utils import timezone

from billing.models import ModelPrice
from chatproject.lib.db import prepared

MILLION = 1_000_000

# More tokens than any model will ever process in one call: a higher report is nonsense, and free
# output is affordable up to here.
MAX_TOKENS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Tokens:
    """Tokens of one call. `cached` is a part of `input`, `reasoning` a part of `output`.

    Raises ValueError for a negative number and for a part larger than its whole.
    """

    input: int
    cached: int = 0
    output: int = 0
    reasoning: int = 0

    def __post_init__(self) -> None:
        if not (0 <= self.cached <= self.input and 0 <= self.reasoning <= self.output):
            raise ValueError(f"impossible numbers of tokens: {self}")

    @classmethod
    def reported(
        cls, *, input: int, cached: int = 0, output: int = 0, reasoning: int = 0
    ) -> Tokens:
        """Return a provider's report, clamped to possible values; never raises."""
        input = min(max(input, 0), MAX_TOKENS)
        output = min(max(output, 0), MAX_TOKENS)
        return cls(
            input=input,
            cached=min(max(cached, 0), input),
            output=output,
            reasoning=min(max(reasoning, 0), output),
        )


def in_force(model: str, at: datetime | None = None) -> ModelPrice | None:
    """Return the price of a model (by the provider's name) at a time, by default now.

    None: the model is not offered.
    """
    row = prepared.first(IN_FORCE, {"model": model, "at": at or timezone.now()}, ModelPrice)
    found: ModelPrice | None = None if row is None else row[0]
    return found


# Plain SQL, since each message needs it: see lib.db.prepared.
IN_FORCE = f"""
SELECT {prepared.columns(ModelPrice, "price")} FROM billing_modelprice AS price
WHERE model = %(model)s AND effective_from <= %(at)s ORDER BY effective_from DESC LIMIT 1
"""  # noqa: S608 # of names alone


def all_in_force(models: Iterable[str]) -> dict[str, ModelPrice]:
    """Return the present prices of models by the provider's names; those without one are missing."""
    begun = ModelPrice.objects.filter(model__in=list(models), effective_from__lte=timezone.now())
    newest = begun.order_by("model", "-effective_from").distinct("model")
    return {price.model: price for price in newest}


def priced_models() -> set[str]:
    """Return the names of all models with a price in force."""
    begun = ModelPrice.objects.filter(effective_from__lte=timezone.now())
    return set(begun.order_by().values_list("model", flat=True).distinct())


def cost(price: ModelPrice, tokens: Tokens, *, fee: int = 0) -> int:
    """Return the cost of a call in micro-credits. `fee` is an assistant's, per message."""
    rates = _segments(price, tokens.input)[-1]
    total = (
        (tokens.input - tokens.cached) * rates.input
        + tokens.cached * rates.cached
        + (tokens.output - tokens.reasoning) * rates.output
        + tokens.reasoning * rates.reasoning
    )
    return _round_up(total) + price.request_fee + fee


def max_cost(price: ModelPrice, *, prompt_tokens: int, max_tokens: int, fee: int = 0) -> int:
    """Return the micro-credits that a hold must cover: no call within these bounds costs more.

    The bound includes any share of cached prompt and of reasoning, and a prompt that turns out
    shorter and so falls into a lower tier.
    """
    total = max(
        segment.longest * segment.dearest_input + max_tokens * segment.dearest_output
        for segment in _segments(price, prompt_tokens)
    )
    return _round_up(total) + price.request_fee + fee


def affordable(price: ModelPrice, *, prompt_tokens: int, credits: int, fee: int = 0) -> int:
    """Return the most output tokens whose `max_cost` fits into `credits` (micro-credits).

    Never above MAX_TOKENS; 0 also if the prompt alone costs more.
    """
    budget = (credits - price.request_fee - fee) * MILLION
    tokens = MAX_TOKENS
    for segment in _segments(price, prompt_tokens):
        left = budget - segment.longest * segment.dearest_input
        if left < 0:
            return 0
        if segment.dearest_output:
            tokens = min(tokens, left // segment.dearest_output)
    return tokens


@dataclass(frozen=True, slots=True)
class _Segment:
    """Rates for prompts of up to `longest` tokens, in micro-credits per million tokens."""

    longest: int
    input: int
    cached: int
    output: int
    reasoning: int

    @property
    def dearest_input(self) -> int:
        return max(self.input, self.cached)

    @property
    def dearest_output(self) -> int:
        return max(self.output, self.reasoning)


def _segments(price: ModelPrice, prompt_tokens: int) -> list[_Segment]:
    """Return the tiers that a prompt of at most `prompt_tokens` may fall into; its own is the last."""
    reached = sorted(
        (tier for tier in price.tiers if tier["above"] < prompt_tokens),
        key=lambda tier: tier["above"],
    )
    ends = [tier["above"] for tier in reached] + [prompt_tokens]
    segments = []
    for tier, longest in zip([{}, *reached], ends, strict=True):
        # A rate that a tier leaves out stays as in the row itself.
        output = tier.get("out_per_m", price.out_per_m)
        reasoning = tier.get("reasoning_per_m", price.reasoning_per_m)
        segments.append(
            _Segment(
                longest=longest,
                input=tier.get("in_per_m", price.in_per_m),
                cached=tier.get("cached_in_per_m", price.cached_in_per_m),
                output=output,
                reasoning=output if reasoning is None else reasoning,
            )
        )
    return segments


def _round_up(total: int) -> int:
    return -(-total // MILLION)
