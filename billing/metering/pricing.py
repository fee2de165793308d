"""What a call of a model costs: whole micro-credits, rounded up once per call.

A price is a row that never changes; the one in force is the newest that has begun. A model without
one is not offered.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from django.utils import timezone

from billing.models import ModelPrice
from chatproject.lib import rows

MILLION = 1_000_000


# More tokens than any model will ever handle at once: what a provider reports beyond is nonsense,
# and what is free is affordable up to here.
MOST_TOKENS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Tokens:
    """Tokens of one call. `cached` is a part of `input`, `reasoning` a part of `output`.

    Raises ValueError for a negative number and for a part that is larger than its whole.
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
        """What a provider reports, brought within possible bounds: never raises."""
        input = min(max(input, 0), MOST_TOKENS)
        output = min(max(output, 0), MOST_TOKENS)
        return cls(
            input=input,
            cached=min(max(cached, 0), input),
            output=output,
            reasoning=min(max(reasoning, 0), output),
        )


def in_force(model: str, at: datetime | None = None) -> ModelPrice | None:
    """The price of a model (by the provider's name) at a moment, now by default; None: not offered."""
    row = rows.first(IN_FORCE, {"model": model, "at": at or timezone.now()}, ModelPrice)
    found: ModelPrice | None = None if row is None else row[0]
    return found


# In plain SQL, since it is asked with each message: see lib.rows.
IN_FORCE = f"""
SELECT {rows.columns(ModelPrice, "price")} FROM billing_modelprice AS price
WHERE model = %(model)s AND effective_from <= %(at)s ORDER BY effective_from DESC LIMIT 1
"""  # noqa: S608 # of names alone


def priced_models() -> set[str]:
    """The names of all models that have a price now."""
    begun = ModelPrice.objects.filter(effective_from__lte=timezone.now())
    return set(begun.order_by().values_list("model", flat=True).distinct())


def cost(price: ModelPrice, tokens: Tokens, *, fee: int = 0) -> int:
    """What a call costs, in micro-credits. `fee` is an assistant's, per message."""
    rates = _segments(price, tokens.input)[-1]
    total = (
        (tokens.input - tokens.cached) * rates.input
        + tokens.cached * rates.cached
        + (tokens.output - tokens.reasoning) * rates.output
        + tokens.reasoning * rates.reasoning
    )
    return _round_up(total) + price.request_fee + fee


def most(price: ModelPrice, *, prompt_tokens: int, max_tokens: int, fee: int = 0) -> int:
    """What a hold must cover, in micro-credits: no call within these bounds costs more.

    Whatever part of the prompt is cached, whatever part of the output is reasoning, and also when
    the prompt turns out shorter and so falls into a lower tier.
    """
    total = max(
        segment.longest * segment.dearest_input + max_tokens * segment.dearest_output
        for segment in _segments(price, prompt_tokens)
    )
    return _round_up(total) + price.request_fee + fee


def affordable(price: ModelPrice, *, prompt_tokens: int, credits: int, fee: int = 0) -> int:
    """For how many output tokens `most` is no more than so many micro-credits, at best MOST_TOKENS.

    0 also when the prompt alone costs more.
    """
    budget = (credits - price.request_fee - fee) * MILLION
    tokens = MOST_TOKENS
    for segment in _segments(price, prompt_tokens):
        left = budget - segment.longest * segment.dearest_input
        if left < 0:
            return 0
        if segment.dearest_output:
            tokens = min(tokens, left // segment.dearest_output)
    return tokens


@dataclass(frozen=True, slots=True)
class _Segment:
    """Prices for prompts of up to `longest` tokens, in micro-credits per million tokens."""

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
    """The tiers that a prompt of up to so many tokens may fall into; its own is the last."""
    reached = sorted(
        (tier for tier in price.tiers if tier["above"] < prompt_tokens),
        key=lambda tier: tier["above"],
    )
    ends = [tier["above"] for tier in reached] + [prompt_tokens]
    return [
        _segment(price, tier, longest) for tier, longest in zip([{}, *reached], ends, strict=True)
    ]


def _segment(price: ModelPrice, tier: dict[str, int], longest: int) -> _Segment:
    # What a tier leaves out stays as in the row itself.
    output = tier.get("out_per_m", price.out_per_m)
    reasoning = tier.get("reasoning_per_m", price.reasoning_per_m)
    return _Segment(
        longest=longest,
        input=tier.get("in_per_m", price.in_per_m),
        cached=tier.get("cached_in_per_m", price.cached_in_per_m),
        output=output,
        reasoning=output if reasoning is None else reasoning,
    )


def _round_up(total: int) -> int:
    return -(-total // MILLION)
