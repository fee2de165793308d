"""The import of model prices from a LiteLLM price list."""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone

from billing.metering import pricing
from billing.metering.litellm_prices import PriceList, Rate, Refused
from billing.metering.pricing import Tokens
from billing.models import ModelPrice
from chat.models import LanguageModel

pytestmark = pytest.mark.django_db

SAMPLE = Path(__file__).parent / "data" / "prices_sample.json"


@pytest.fixture(autouse=True)
def credit_of_a_cent(settings):
    settings.CREDIT_USD = Decimal("0.01")


def run(*arguments: object, file: Path = SAMPLE) -> str:
    """Run the command and return its output; raises CommandError when it refuses something."""
    out = io.StringIO()
    call_command("import_prices", str(file), *map(str, arguments), stdout=out)
    return out.getvalue()


def refused(*arguments: object, file: Path = SAMPLE) -> str:
    """Run the command, which must refuse something, and return its errors."""
    err = io.StringIO()
    with pytest.raises(CommandError) as failure:
        call_command(
            "import_prices", str(file), *map(str, arguments), stdout=io.StringIO(), stderr=err
        )
    assert failure.value.returncode != 0
    return err.getvalue() + str(failure.value)


def price(model: str) -> ModelPrice:
    return ModelPrice.objects.get(model=model)


def test_dollars_per_token_become_micro_credits_per_million():
    run("--model", "plain", "full")
    plain = price("plain")
    # 0.15 dollars per million tokens are 15 credits.
    assert (plain.in_per_m, plain.cached_in_per_m, plain.out_per_m) == (
        15_000_000, 15_000_000, 60_000_000,
    )  # fmt: skip
    assert (plain.reasoning_per_m, plain.request_fee, plain.tiers) == (None, 0, [])
    full = price("full")
    assert (full.in_per_m, full.cached_in_per_m) == (125_000_000, 12_500_000)
    assert (full.out_per_m, full.reasoning_per_m) == (1_000_000_000, 1_200_000_000)
    assert full.request_fee == 500_000
    assert full.tiers == [
        {
            "above": 200_000, "in_per_m": 250_000_000, "cached_in_per_m": 25_000_000,
            "out_per_m": 1_500_000_000, "reasoning_per_m": 1_200_000_000,
        }
    ]  # fmt: skip
    assert full.source == "prices_sample.json: maker/full"
    # One million in, one million out, at 0.15 and 0.60 dollars.
    assert pricing.cost(plain, Tokens(1_000_000, output=1_000_000)) == 75_000_000


def test_tier_inherits_unnamed_prices():
    run("--model", "two-steps")
    lower, higher = price("two-steps").tiers
    assert lower == {
        "above": 128_000, "in_per_m": 100_000_000, "cached_in_per_m": 100_000_000,
        "out_per_m": 400_000_000,
    }  # fmt: skip
    # In a tier too, cached input without a price costs as much as other input.
    assert higher == {
        "above": 256_000, "in_per_m": 300_000_000, "cached_in_per_m": 300_000_000,
        "out_per_m": 400_000_000,
    }  # fmt: skip


def test_floating_point_noise_is_dropped_before_rounding_up(settings):
    run("--model", "noise", "uneven")
    assert price("noise").in_per_m == 20_000_000
    assert price("noise").out_per_m == 100_000_000
    assert price("uneven").in_per_m == 100
    assert price("uneven").out_per_m == 54_687_500
    settings.CREDIT_USD = Decimal("0.03")
    run("--model", "uneven")
    assert pricing.in_force("uneven").in_per_m == 34  # of 33.3
    assert pricing.in_force("uneven").out_per_m == 18_229_167  # of 18,229,166.67


def test_markup_is_added_before_rounding():
    run("--model", "uneven", "--markup", "12.5")
    assert price("uneven").in_per_m == 113  # of 112.5
    assert price("uneven").out_per_m == 61_523_438  # of 61,523,437.5


def test_free_model_gets_a_price_of_zero():
    run("--model", "free")
    assert price("free").out_per_m == 0
    assert "free" in pricing.priced_models()


def test_catalogue_models_are_imported_by_default():
    LanguageModel.objects.create(name="Plain", provider_model="plain")
    LanguageModel.objects.create(name="Plain, long", provider_model="plain")
    LanguageModel.objects.create(name="Full", provider_model="elsewhere/full")
    output = run()
    assert set(ModelPrice.objects.values_list("model", flat=True)) == {"plain", "elsewhere/full"}
    assert "2 written" in output


def test_empty_catalogue_is_refused():
    assert "no models" in refused()


def test_all_imports_every_good_chat_model():
    errors = refused("--all")
    assert set(ModelPrice.objects.values_list("model", flat=True)) == {
        "plain", "maker/full", "maker/two-steps", "noise", "uneven", "free", "one/double",
        "another/double",
    }  # fmt: skip
    assert "7 of 15 models were refused" in errors
    assert "pictures" not in errors


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("bad/negative", "input_cost_per_token is negative"),
        ("bad/absurd", "above 1,000,000 credits"),
        ("bad/tiny", "too small to be right"),
        ("bad/no-output", "no output_cost_per_token"),
        ("bad/text", "not a number"),
        ("bad/negative-tier", "above_200k_tokens is negative"),
        ("bad/other-tiers", "enter them by hand"),
        ("bad/pictures", "mode image_generation"),
        ("nobody/knows", "not in the list"),
        ("double", "another/double, one/double"),
        ("m" * 201, "not in the list"),
    ],
)
def test_refused_model_does_not_stop_the_others(name, why):
    errors = refused("--model", name, "plain", "vectors")
    assert f"{name}: " in errors
    assert why in errors
    assert "1 of 3 models were refused" in errors
    assert set(ModelPrice.objects.values_list("model", flat=True)) == {"plain", "vectors"}


def test_full_name_selects_one_maker():
    run("--model", "one/double", "another/double")
    assert price("one/double").in_per_m == 100_000_000
    assert price("another/double").in_per_m == 200_000_000


def test_unchanged_prices_write_nothing():
    run("--model", "plain", "full")
    output = run("--model", "plain", "full")
    assert output.count("unchanged") == 2
    assert "0 written" in output
    assert ModelPrice.objects.count() == 2


def test_changed_price_is_shown_and_both_kept():
    ModelPrice.objects.create(
        model="plain", effective_from=timezone.now() - timedelta(days=1), in_per_m=14_000_000,
        cached_in_per_m=15_000_000, out_per_m=60_000_000,
    )  # fmt: skip
    output = run("--model", "plain")
    (line,) = [line for line in output.splitlines() if line.startswith("plain")]
    assert line.split() == ["plain", "changed", "14", "->", "15", "15", "60", "60", "0", "-"]
    assert ModelPrice.objects.filter(model="plain").count() == 2
    assert pricing.in_force("plain").in_per_m == 15_000_000


def test_dry_run_shows_prices_and_writes_nothing():
    output = run("--model", "plain", "--dry-run")
    assert "1 would be written" in output
    assert "plain  new" in output
    assert not ModelPrice.objects.exists()


def test_prices_begin_later_by_the_sites_zone(settings):
    settings.TIME_ZONE = "Asia/Kolkata"
    run("--model", "plain", "--from", "2100-01-01T00:00")
    assert price("plain").effective_from == datetime(2099, 12, 31, 18, 30, tzinfo=UTC)
    run("--model", "free", "--from", "2100-01-01T00:00+00:00")
    assert price("free").effective_from == datetime(2100, 1, 1, tzinfo=UTC)
    assert pricing.priced_models() == set()
    assert "another price from that very time" in refused(
        "--model", "plain", "--from", "2100-01-01T00:00", "--markup", 1
    )


def test_past_prices_are_not_changed():
    run("--model", "plain", "--from", "2020-01-01")  # its first: nothing was charged by another
    errors = refused("--model", "plain", "--from", "2021-01-01", "--markup", 1)
    assert "choose a time that has not passed" in errors
    assert ModelPrice.objects.count() == 1


@pytest.mark.parametrize(
    ("option", "value"),
    [("--from", "tomorrow"), ("--markup", "-1"), ("--markup", "much"), ("--markup", "NaN")],
)
def test_nonsensical_option_is_refused(option, value):
    with pytest.raises(CommandError):
        run("--model", "plain", f"{option}={value}")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'{"m": 1}',
        b'{"m": {"input_cost_per_token": NaN}}',
        b'{"m": {"input_cost_per_token": 1e99999999999999999999}}',
        b"\xff",
        b"[" * 100_000,
    ],
)
def test_unreadable_file_is_refused(tmp_path, content):
    file = tmp_path / "list.json"
    file.write_bytes(content)
    assert "cannot be read" in refused("--all", file=file)
    assert "cannot be read" in refused("--all", file=tmp_path / "missing.json")


@pytest.mark.parametrize("usd", ["1e400", "9" * 400, "true", "[1]", "1e-400", "-1e-13"])
def test_nonsensical_figure_is_refused(usd):
    found = PriceList(f'{{"m": {{"input_cost_per_token": {usd}, "output_cost_per_token": 0}}}}')
    with pytest.raises(Refused):
        found.price("m", Rate(Decimal(1)), model="m", effective_from=timezone.now())


def test_mode_of_another_type_is_refused():
    found = PriceList(json.dumps({"m": {"mode": ["chat"]}}))
    assert found.chat_models() == []
    with pytest.raises(Refused):
        found.price("m", Rate(Decimal(1)), model="m", effective_from=timezone.now())
