"""Units. Credits are whole micro-credits everywhere; people see and type credits.

The code counts whole micro-credits and users see credits: 1 credit = 1,000,000 micro-credits. Money is
counted in whole minor units of its currency.
"""

from __future__ import annotations

from decimal import ROUND_DOWN, Decimal, InvalidOperation
from typing import Any

from django import forms
from django.utils.functional import Promise, lazy
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from chatproject.lib import languages

MICRO = 1_000_000
MINUS = "\N{MINUS SIGN}"  # as wide as a plus in tabular figures

# Decimal places of currencies that do not have two (ISO 4217).
EXPONENTS = {
    "BIF": 0, "CLP": 0, "DJF": 0, "GNF": 0, "ISK": 0, "JPY": 0, "KMF": 0, "KRW": 0, "PYG": 0,
    "RWF": 0, "UGX": 0, "UYI": 0, "VND": 0, "VUV": 0, "XAF": 0, "XOF": 0, "XPF": 0,
    "BHD": 3, "IQD": 3, "JOD": 3, "KWD": 3, "LYD": 3, "OMR": 3, "TND": 3,
}  # fmt: skip


def show(micro: int, *, signed: bool = False) -> str:
    """Format micro-credits for users in the active language, whole credits without decimals.

    `1,234.50`, `0.31`, and `<0.01` instead of a misleading zero.
    """
    amount = abs(micro)
    if not amount or (amount >= MICRO and amount % MICRO < MICRO // 100):
        return _sign(micro, signed=signed) + languages.number(amount // MICRO)
    return in_column(micro, signed=signed)


def in_column(micro: int, *, signed: bool = False) -> str:
    """Format micro-credits like `show`, always with two decimals: `100.00`."""
    sign = _sign(micro, signed=signed)
    value = Decimal(abs(micro)) / MICRO
    if 0 < value < Decimal("0.01"):
        # In words where the sign would be mirrored beside a number: from right to left.
        return sign + _("<%(amount)s") % {"amount": languages.number(Decimal("0.01"), 2)}
    return sign + languages.number(value.quantize(Decimal("0.01"), rounding=ROUND_DOWN), 2)


def _sign(micro: int, *, signed: bool) -> str:
    return MINUS if micro < 0 else "+" if signed and micro > 0 else ""


def exact(micro: int) -> str:
    """Format micro-credits exactly, as a decimal number of credits for files: `-0.000125`."""
    sign = "-" if micro < 0 else ""
    whole, rest = divmod(abs(micro), MICRO)
    return f"{sign}{whole}.{rest:06d}".rstrip("0").rstrip(".")


def parse(text: str) -> int:
    """Parse a number of credits that a user typed; return micro-credits.

    Raises ValueError for text that is not a number, for more than six decimals and above 9e12
    credits.
    """
    try:
        value = Decimal(text.strip().replace(",", "")) * MICRO
    except InvalidOperation as error:
        raise ValueError(f"{text!r} is not a number of credits") from error
    if not value.is_finite() or value != value.to_integral_value() or abs(value) >= 2**63:
        raise ValueError(f"{text!r} is not a number of credits with at most six decimals")
    return int(value)


def show_money(minor: int, currency: str) -> str:
    """Format an amount of money with its currency: `USD 5.00`, `JPY 500`."""
    places = EXPONENTS.get(currency, 2)
    return f"{currency} {languages.number(Decimal(minor).scaleb(-places), places)}"


def step_of_money(currency: str) -> int:
    """Return the minor units that amounts must be multiples of: providers move no thousandths."""
    return 10 if EXPONENTS.get(currency, 2) == 3 else 1


def _credits_text(text: str | Promise) -> str:
    return str(text).replace(_("Micro-credits"), _("Credits"))


_in_credits: Any = lazy(_credits_text, str)


class CreditsFormField(forms.Field):
    """Credits as a person types them; the value is whole micro-credits, or None when empty."""

    widget = forms.TextInput(attrs={"inputmode": "decimal", "class": "vTextField", "size": "20"})
    default_error_messages = {
        "invalid": gettext_lazy(
            "Enter a number of credits with at most six decimals, for example 12.5."
        ),
        "min_value": gettext_lazy("Enter at least %(limit)s."),
    }

    def __init__(
        self, *, min_value: int | None = 0, help_text: str | Promise = "", **options: Any
    ) -> None:
        self.min_value = min_value
        # Help texts of models count micro-credits.
        super().__init__(help_text=_in_credits(help_text), **options)

    def to_python(self, value: Any) -> int | None:
        if value is None or (isinstance(value, str) and not value.strip()):
            return None
        try:
            micro = parse(languages.plain_number(str(value).replace(MINUS, "-")))
        except ValueError as error:
            raise forms.ValidationError(self.error_messages["invalid"]) from error
        if self.min_value is not None and micro < self.min_value:
            limit = languages.written(exact(self.min_value))
            raise forms.ValidationError(self.error_messages["min_value"], params={"limit": limit})
        return micro

    def prepare_value(self, value: Any) -> Any:
        return languages.written(exact(value)) if isinstance(value, int) else value

    def has_changed(self, initial: Any, data: Any) -> bool:
        try:
            return bool(self.to_python(data) != initial)
        except forms.ValidationError:
            return True
