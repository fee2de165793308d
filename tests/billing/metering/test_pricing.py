"""Costs by price and tokens, and the prices in force."""

from __future__ import annotations

from datetime import timedelta
from fractions import Fraction
from typing import Any

import pytest
from django.core.exceptions import ValidationError
from django.utils import timezone
from hypothesis import given, settings
from hypothesis import strategies as st

from billing.metering import pricing
from billing.metering.pricing import Tokens
from billing.models import ModelPrice
from billing.models.prices import HIGHEST_PRICE

PRICES = ("in_per_m", "cached_in_per_m", "out_per_m", "reasoning_per_m")
TIER_EDGES = (1, 1_000, 128_000, 200_000)

per_m = st.integers(0, 10) | st.integers(0, HIGHEST_PRICE) | st.integers(0, 5_000_000_000)
counts = st.integers(0, 20) | st.sampled_from(
    [edge + by for edge in TIER_EDGES for by in (-1, 0, 1)]
) | st.integers(0, 2_000_000)  # fmt: skip
fees = st.sampled_from([0, 0, 1, 12_345])


@st.composite
def prices(draw) -> ModelPrice:
    edges = sorted(draw(st.sets(st.sampled_from(TIER_EDGES), max_size=3)))
    named = st.dictionaries(st.sampled_from(PRICES), per_m, min_size=1)
    tiers = [{"above": edge, **draw(named)} for edge in edges]
    return ModelPrice(
        model="m",
        in_per_m=draw(per_m),
        cached_in_per_m=draw(per_m),
        out_per_m=draw(per_m),
        reasoning_per_m=draw(st.none() | per_m),
        request_fee=draw(fees),
        tiers=tiers,
    )


@st.composite
def usages(draw, inputs=counts, outputs=counts) -> Tokens:
    input = draw(inputs)
    output = draw(outputs)
    return Tokens(
        input=input,
        cached=draw(st.integers(0, input)),
        output=output,
        reasoning=draw(st.integers(0, output)),
    )


thorough = settings(max_examples=300, derandomize=True, deadline=None, database=None)


def by_fractions(price: ModelPrice, tokens: Tokens, fee: int) -> int:
    """The cost in exact arithmetic, term by term."""
    rates = {name: getattr(price, name) for name in PRICES}
    reached = [tier for tier in price.tiers if tokens.input > tier["above"]]
    if reached:
        rates |= max(reached, key=lambda tier: tier["above"])
    if rates["reasoning_per_m"] is None:
        rates["reasoning_per_m"] = rates["out_per_m"]
    exact = (
        Fraction(rates["in_per_m"], 1_000_000) * (tokens.input - tokens.cached)
        + Fraction(rates["cached_in_per_m"], 1_000_000) * tokens.cached
        + Fraction(rates["out_per_m"], 1_000_000) * (tokens.output - tokens.reasoning)
        + Fraction(rates["reasoning_per_m"], 1_000_000) * tokens.reasoning
        + price.request_fee
        + fee
    )
    return exact.__ceil__()


@thorough
@given(prices(), usages(), fees)
def test_cost_is_the_exact_sum_rounded_up(price, tokens, fee):
    cost = pricing.cost(price, tokens, fee=fee)
    assert cost == by_fractions(price, tokens, fee)
    assert cost >= 0


@thorough
@given(prices(), usages(), st.integers(0, 1_000))
def test_more_tokens_never_cost_less(price, tokens, more):
    cost = pricing.cost(price, tokens)
    visible = Tokens(tokens.input, tokens.cached, tokens.output + more, tokens.reasoning)
    thought = Tokens(tokens.input, tokens.cached, tokens.output + more, tokens.reasoning + more)
    assert pricing.cost(price, visible) >= cost
    assert pricing.cost(price, thought) >= cost
    # For input only without tiers: a tier may make long prompts cheaper.
    price.tiers = []
    cost = pricing.cost(price, tokens)
    fresh = Tokens(tokens.input + more, tokens.cached, tokens.output, tokens.reasoning)
    cached = Tokens(tokens.input + more, tokens.cached + more, tokens.output, tokens.reasoning)
    assert pricing.cost(price, fresh) >= cost
    assert pricing.cost(price, cached) >= cost


@thorough
@given(prices(), counts, counts, fees, st.data())
def test_hold_covers_any_usage_within_its_bounds(price, prompt, cap, fee, data):
    tokens = data.draw(usages(st.integers(0, prompt), st.integers(0, cap)))
    held = pricing.max_cost(price, prompt_tokens=prompt, max_tokens=cap, fee=fee)
    assert held >= pricing.cost(price, tokens, fee=fee)


@thorough
@given(prices(), counts, fees, st.integers(0, 10**9) | st.integers(0, 10**15))
def test_affordable_tokens_are_the_maximum_that_fits(price, prompt, fee, credits):
    tokens = pricing.affordable(price, prompt_tokens=prompt, credits=credits, fee=fee)

    def max_cost(max_tokens):
        return pricing.max_cost(price, prompt_tokens=prompt, max_tokens=max_tokens, fee=fee)

    assert tokens >= 0
    if max_cost(0) > credits:
        assert tokens == 0
    else:
        assert max_cost(tokens) <= credits
        assert tokens == pricing.MAX_TOKENS or max_cost(tokens + 1) > credits


@pytest.mark.parametrize(
    ("prompt", "per_token"),
    [(199_999, 1), (200_000, 1), (200_001, 2), (499_999, 2), (500_000, 2), (500_001, 3)],
)
def test_tier_prices_all_tokens_above_its_edge(prompt, per_token):
    tiers = [{"above": 500_000, "in_per_m": 3_000_000}, {"above": 200_000, "in_per_m": 2_000_000}]
    price = ModelPrice(in_per_m=1_000_000, cached_in_per_m=0, out_per_m=0, tiers=tiers)
    assert pricing.cost(price, Tokens(prompt)) == prompt * per_token
    assert pricing.max_cost(price, prompt_tokens=prompt, max_tokens=0) == prompt * per_token


def test_hold_covers_prompts_below_a_cheaper_tier():
    price = ModelPrice(
        in_per_m=1_000_000, cached_in_per_m=0, out_per_m=0, tiers=[{"above": 100, "in_per_m": 0}]
    )
    assert pricing.cost(price, Tokens(101)) == 0
    assert pricing.max_cost(price, prompt_tokens=101, max_tokens=0) == 100


@pytest.mark.parametrize(
    "numbers", [(-1, 0, 0, 0), (1, 2, 0, 0), (1, -1, 0, 0), (0, 0, -1, 0), (0, 0, 1, 2), (0, 0, 1, -1)]
)  # fmt: skip
def test_impossible_tokens_are_refused_but_reported_ones_clamped(numbers):
    with pytest.raises(ValueError, match="impossible"):
        Tokens(*numbers)
    input, cached, output, reasoning = numbers
    Tokens.reported(input=input, cached=cached, output=output, reasoning=reasoning)
    assert Tokens.reported(input=10**30).input == pricing.MAX_TOKENS


ONE_EACH = {"in_per_m": 1, "cached_in_per_m": 1, "out_per_m": 1}


def priced(model="m", hours=0.0) -> ModelPrice:
    begins = timezone.now() + timedelta(hours=hours)
    return ModelPrice.objects.create(model=model, effective_from=begins, **ONE_EACH)


@pytest.mark.django_db
def test_newest_begun_price_is_in_force():
    first = priced(hours=-2)
    second = priced(hours=-1)
    third = priced(hours=1)
    other = priced("other", hours=1)
    assert pricing.in_force("m") == second
    assert pricing.in_force("m", second.effective_from) == second
    assert pricing.in_force("m", second.effective_from - timedelta(microseconds=1)) == first
    assert pricing.in_force("m", third.effective_from) == third
    assert pricing.in_force("m", first.effective_from - timedelta(seconds=1)) is None
    assert pricing.in_force("other") is None
    assert pricing.in_force("nobody's") is None
    assert pricing.priced_models() == {"m"}
    assert pricing.in_force("other", other.effective_from) == other


@pytest.mark.django_db
def test_price_lookups_take_one_query_each(django_assert_num_queries):
    priced()
    with django_assert_num_queries(1):
        pricing.in_force("m")
    with django_assert_num_queries(1):
        pricing.priced_models()


@pytest.mark.django_db
def test_past_of_a_priced_model_is_not_changed():
    late = timezone.now() - timedelta(minutes=2)
    fields: dict[str, Any] = {"model": "m", **ONE_EACH}
    ModelPrice(**fields, effective_from=late).full_clean()  # its first price
    priced(hours=-1)
    with pytest.raises(ValidationError) as refused:
        ModelPrice(**fields, effective_from=late).full_clean()
    assert set(refused.value.message_dict) == {"effective_from"}
    ModelPrice(**fields, effective_from=timezone.now() - timedelta(seconds=50)).full_clean()


@pytest.mark.django_db
@pytest.mark.parametrize("field", [*PRICES, "request_fee"])
@pytest.mark.parametrize("value", [-1, HIGHEST_PRICE + 1])
def test_negative_or_absurd_price_is_refused(field, value):
    with pytest.raises(ValidationError) as refused:
        ModelPrice(model="m", **ONE_EACH | {field: value}).clean()
    assert set(refused.value.message_dict) == {field}


@pytest.mark.django_db
@pytest.mark.parametrize(
    "tiers",
    [
        {"above": 1, "in_per_m": 1},
        ["above"],
        [{"in_per_m": 1}],
        [{"above": "1", "in_per_m": 1}],
        [{"above": True, "in_per_m": 1}],
        [{"above": 0, "in_per_m": 1}],
        [{"above": 1}],
        [{"above": 1, "in_per_m": 1.5}],
        [{"above": 1, "in_per_m": None}],
        [{"above": 1, "in_per_m": -1}],
        [{"above": 1, "out_per_m": HIGHEST_PRICE + 1}],
        [{"above": 1, "input": 1}],
        [{"above": 2, "in_per_m": 1}, {"above": 1, "in_per_m": 1}],
        [{"above": 1, "in_per_m": 1}, {"above": 1, "in_per_m": 2}],
    ],
)
def test_unreadable_tiers_are_refused(tiers):
    with pytest.raises(ValidationError) as refused:
        ModelPrice(model="m", tiers=tiers, **ONE_EACH).clean()
    assert set(refused.value.message_dict) == {"tiers"}


@pytest.mark.django_db
def test_readable_tiers_are_accepted():
    tiers = [{"above": 1, "in_per_m": 0}, {"above": 2, "cached_in_per_m": 1, "out_per_m": 1}]
    ModelPrice(model="m", tiers=tiers, **ONE_EACH).full_clean()
