from __future__ import annotations

from datetime import date
from decimal import Decimal
from typing import Any

from django import forms
from django.core.validators import MaxValueValidator, MinValueValidator

from billing import credits
from billing.models import AutoTopUp, SpendingLimit
from billing.payments.packages import Offer
from billing.reports import statements

Period = SpendingLimit.Period

# What a time zone cannot push out of the calendar.
DAYS = [MinValueValidator(date(2000, 1, 1)), MaxValueValidator(date(2199, 12, 31))]
NOT_A_DATE = "Give a date as year, month and day, for example 2026-03-31."


class DayField(forms.DateField):
    """A day between 2000 and 2199."""

    def __init__(self, **options: Any) -> None:
        super().__init__(
            required=False,
            input_formats=["%Y-%m-%d"],
            widget=forms.DateInput(format="%Y-%m-%d", attrs={"type": "date", "class": "input"}),
            validators=DAYS,
            error_messages={"invalid": NOT_A_DATE},
            **options,
        )


class HistoryForm(forms.Form):
    """Which lines of the statement are wanted. What is not valid is told, and does not filter."""

    kind = forms.ChoiceField(
        required=False,
        choices=[("", "Everything"), *((key, name) for key, (name, _) in statements.KINDS.items())],
        widget=forms.Select(attrs={"class": "input"}),
        error_messages={"invalid_choice": "There is no such kind of line. Choose one of the list."},
    )
    model = forms.ChoiceField(
        required=False,
        widget=forms.Select(attrs={"class": "input"}),
        error_messages={"invalid_choice": "You have not used that model. Choose one of the list."},
    )
    first = DayField(label="From")
    last = DayField(label="To")
    before = forms.IntegerField(
        required=False,
        min_value=1,
        max_value=2**63 - 1,
        widget=forms.HiddenInput,
        error_messages=dict.fromkeys(
            ("invalid", "min_value", "max_value"),
            "That link leads nowhere. These are the newest lines.",
        ),
    )

    def __init__(self, data: Any, *, models: list[str]) -> None:
        super().__init__(data)
        field = self.fields["model"]
        assert isinstance(field, forms.ChoiceField)
        field.choices = [("", "All models"), *((name, name) for name in models)]

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or self.cleaned_data
        first, last = cleaned.get("first"), cleaned.get("last")
        if first and last and first > last:
            raise forms.ValidationError(
                "The first day is after the last one, so no line can be between them."
            )
        return cleaned

    @property
    def wanted(self) -> statements.Filter:
        """What was asked for in a valid way."""
        given = self.cleaned_data
        return statements.Filter(
            kind=given.get("kind", ""),
            model=given.get("model", ""),
            first=given.get("first"),
            last=given.get("last"),
        )


class CreditsField(forms.CharField):
    """Credits as a person types them; its value is micro-credits, None when it is empty."""

    widget = forms.TextInput(attrs={"inputmode": "decimal", "autocomplete": "off"})

    def to_python(self, value: Any) -> Any:
        text = str(value or "").strip()
        if not text:
            return None
        try:
            amount = credits.parse(text)
        except ValueError as error:
            raise forms.ValidationError("Write a number of credits, for example 250.") from error
        if amount < 0:
            raise forms.ValidationError(
                "Write a number of credits that is not negative, for example 250."
            )
        return amount

    def clean(self, value: Any) -> Any:
        return self.to_python(value)


class LimitsForm(forms.Form):
    """One's own limits, by period."""

    day = CreditsField(required=False, label="Credits a day")
    month = CreditsField(required=False, label="Credits a month")
    conversation = CreditsField(required=False, label="Credits for one chat")

    @staticmethod
    def initial_of(limits: list[SpendingLimit]) -> dict[str, str]:
        """What the fields show for limits that are set."""
        return {limit.period: credits.exact(limit.amount) for limit in limits}


class BuyForm(forms.Form):
    """What the button of a package sends."""

    package = forms.IntegerField(min_value=1, max_value=2**63 - 1)
    currency = forms.RegexField(r"^[A-Z]{3}\Z")
    provider = forms.RegexField(r"^[a-z]{1,20}\Z")
    nonce = forms.RegexField(r"^[A-Za-z0-9_-]{8,24}\Z")
    next = forms.CharField(required=False, max_length=500, strip=True)

    @property
    def client_key(self) -> str:
        """The same for a second click on the same button of the same page."""
        given = self.cleaned_data
        return "-".join(
            (given["nonce"], str(given["package"]), given["currency"], given["provider"])
        )


class TopUpForm(forms.Form):
    """The terms of automatic purchases, and the consent to them."""

    offer = forms.ChoiceField(
        label="Buy",
        widget=forms.Select(attrs={"class": "input"}),
        error_messages={"invalid_choice": "This package is not sold any more. Choose another one."},
    )
    threshold = CreditsField(label="When fewer credits are left than")
    cap = forms.DecimalField(
        label="Spend a month at most",
        min_value=0,
        max_digits=12,
        widget=forms.TextInput(attrs={"inputmode": "decimal", "autocomplete": "off"}),
        help_text="In the currency of the package. It is never passed.",
        error_messages={"invalid": "Write an amount of money, for example 50."},
    )
    consent = forms.BooleanField(
        error_messages={"required": "Nothing is bought by itself unless you agree to it."},
        label="I agree that this is charged to the method I pay with next, at most once an hour, until I turn it off here.",
    )

    def __init__(self, *arguments: Any, offers: list[Offer], **options: Any) -> None:
        super().__init__(*arguments, **options)
        field = self.fields["offer"]
        assert isinstance(field, forms.ChoiceField)
        field.choices = [
            (
                f"{offer.package.pk}-{offer.currency}",
                f"{offer.package.name}: {credits.show(offer.package.credits)} credits for "
                f"{credits.show_money(offer.amount_minor, offer.currency)}",
            )
            for offer in offers
        ]

    def clean_threshold(self) -> int:
        threshold: int | None = self.cleaned_data["threshold"]
        if threshold is None:
            raise forms.ValidationError("Write a number of credits, for example 100.")
        return threshold

    @property
    def terms(self) -> dict[str, Any]:
        """What `top_up.consent` takes."""
        given = self.cleaned_data
        package, _, currency = given["offer"].partition("-")
        places = credits.EXPONENTS.get(currency, 2)
        return {
            "package_id": int(package),
            "currency": currency,
            "threshold": given["threshold"],
            "monthly_cap_minor": int(given["cap"].scaleb(places)),
        }

    @staticmethod
    def initial_of(top_up: AutoTopUp | None) -> dict[str, Any]:
        """What the fields show for terms that were agreed to before."""
        if top_up is None:
            return {}
        places = credits.EXPONENTS.get(top_up.currency, 2)
        return {
            "offer": f"{top_up.package_id}-{top_up.currency}",
            "threshold": credits.exact(top_up.threshold),
            "cap": Decimal(top_up.monthly_cap_minor).scaleb(-places),
        }
