"""Numbers as people write and read them in each language."""

from __future__ import annotations

import pytest

from billing import credits
from billing.credits import MICRO
from chatproject.lib import languages


@pytest.mark.parametrize(
    ("language", "shown", "small", "money"),
    [
        ("en", "1,234.50", "<0.01", "USD 1,234.50"),
        ("de", "1.234,50", "<0,01", "USD 1.234,50"),
        ("es", "1.234,50", "<0,01", "USD 1.234,50"),
        ("ar", "1,234.50", "أقل من 0.01", "USD 1,234.50"),
    ],
)
def test_amounts_are_written_as_the_language_does(language, shown, small, money):
    with languages.use(language):
        assert credits.show(1_234_500_000) == shown
        assert credits.show(9_999) == small
        assert credits.show(-12 * MICRO - 9_999) == f"{credits.MINUS}12"
        assert credits.in_column(12 * MICRO, signed=True) == "+12" + shown[-3] + "00"
        assert credits.show_money(123_450, "USD") == money


@pytest.mark.parametrize("language", sorted(languages.CODES))
@pytest.mark.parametrize("micro", [0, 1, 12_500_000, 1_234 * MICRO, 1_234_567_890, 10**15 + 1])
def test_stored_amount_survives_a_form(language, micro):
    field = credits.CreditsFormField()
    with languages.use(language):
        assert field.to_python(field.prepare_value(micro)) == micro
        if micro % 10_000 == 0:
            assert field.to_python(credits.show(micro)) == micro


@pytest.mark.parametrize(
    ("language", "typed", "plain"),
    [
        ("de", "1.234,5", "1234.5"),
        ("de", "12.5", "12.5"),
        ("de", "1.234.567", "1234567"),
        ("de", "12,50", "12.50"),
        ("de", "1,234.5", "1,234.5"),
        ("en", "1,234.5", "1234.5"),
        ("en", "12,5", "12,5"),
        ("ar", " 1,000 ", "1000"),
        ("es", "twelve", "twelve"),
    ],
)
def test_typed_number_is_never_read_tenfold(language, typed, plain):
    with languages.use(language):
        assert languages.plain_number(typed) == plain


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (0, "0 kB"),
        (1, "1 kB"),
        (340_400, "340 kB"),
        (999_600, "1 MB"),
        (2_449_000, "2.4 MB"),
        (20_000_000, "20 MB"),
        (999_960_000, "1 GB"),
        (1_000_000_000, "1 GB"),
        (12_340_000_000, "12.3 GB"),
        (5_000_000_000_000, "5,000 GB"),
    ],
)
def test_size_is_written_in_its_unit(count, shown):
    assert languages.size(count) == shown
    with languages.use("de"):
        assert languages.size(2_449_000) == "2,4 MB"
