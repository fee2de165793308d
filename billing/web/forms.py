"""Forms of the pages about credits and purchases."""

from __future__ import annotations

from datetime import date
from decimal import Decimal
from typing import Any
from urllib.parse import urlencode

from django import forms
from django.core.validators import MaxValueValidator, MinValueValidator
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from billing import credits
from billing.credits import CreditsFormField
from billing.models import AutoTopUp, InvoiceAddress
from billing.payments.packages import Offer
from billing.reports import statements

# Any time zone leaves these days within the calendar.
DAYS = [MinValueValidator(date(2000, 1, 1)), MaxValueValidator(date(2199, 12, 31))]
NOT_A_DATE = gettext_lazy("Enter a date as year, month and day, for example 2026-03-31.")


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
    """The filter of the statement. Values that are not valid are reported, and do not filter."""

    kind = forms.ChoiceField(
        required=False,
        label=gettext_lazy("Type"),
        choices=[
            ("", gettext_lazy("All types")),
            *((key, name) for key, (name, _) in statements.KINDS.items()),
        ],
        widget=forms.Select(attrs={"class": "input"}),
        error_messages={
            "invalid_choice": gettext_lazy("This type does not exist. Choose one from the list.")
        },
    )
    model = forms.ChoiceField(
        label=gettext_lazy("Model"),
        required=False,
        widget=forms.Select(attrs={"class": "input"}),
        error_messages={
            "invalid_choice": gettext_lazy(
                "You have not used this model. Choose one from the list."
            )
        },
    )
    first = DayField(label=gettext_lazy("From"))
    last = DayField(label=gettext_lazy("To"))
    before = forms.IntegerField(
        required=False,
        min_value=1,
        max_value=2**63 - 1,
        widget=forms.HiddenInput,
        error_messages=dict.fromkeys(
            ("invalid", "min_value", "max_value"),
            gettext_lazy("That link is not valid. These are the newest entries."),
        ),
    )

    def __init__(self, data: Any, *, models: list[str]) -> None:
        super().__init__(data)
        field = self.fields["model"]
        assert isinstance(field, forms.ChoiceField)
        field.choices = [("", _("All models")), *((name, name) for name in models)]

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or self.cleaned_data
        first, last = cleaned.get("first"), cleaned.get("last")
        if first and last and first > last:
            raise forms.ValidationError(
                _("The first day is after the last one, so there are no entries between them.")
            )
        return cleaned

    @property
    def wanted(self) -> statements.Filter:
        """The filter made of the valid values."""
        given = self.cleaned_data
        return statements.Filter(
            kind=given.get("kind", ""),
            model=given.get("model", ""),
            first=given.get("first"),
            last=given.get("last"),
        )

    @property
    def query(self) -> str:
        """The filter as a query string, for links."""
        wanted = self.wanted
        given = {
            "kind": wanted.kind,
            "model": wanted.model,
            "first": wanted.first or "",
            "last": wanted.last or "",
        }
        return urlencode({name: value for name, value in given.items() if value})


class CreditsInput(CreditsFormField):
    """Credits as a user types them."""

    widget = forms.TextInput(attrs={"inputmode": "decimal", "autocomplete": "off"})
    default_error_messages = {
        "required": gettext_lazy("Enter a number of credits, for example 100."),
        "invalid": gettext_lazy("Enter a number of credits, for example 250."),
        "min_value": gettext_lazy(
            "Enter a number of credits that is not negative, for example 250."
        ),
    }


class LimitsForm(forms.Form):
    """A user's own spending limits, by period."""

    day = CreditsInput(required=False, label=gettext_lazy("Credits per day"))
    month = CreditsInput(required=False, label=gettext_lazy("Credits per month"))
    conversation = CreditsInput(required=False, label=gettext_lazy("Credits per chat"))


class BuyForm(forms.Form):
    """The values that the button of a package sends."""

    package = forms.IntegerField(min_value=1, max_value=2**63 - 1)
    currency = forms.RegexField(r"^[A-Z]{3}\Z")
    provider = forms.RegexField(r"^[a-z]{1,20}\Z")
    nonce = forms.RegexField(r"^[A-Za-z0-9_-]{8,24}\Z")
    next = forms.CharField(required=False, max_length=500, strip=True)

    @property
    def client_key(self) -> str:
        """A key that a second click on the same button of the same page repeats."""
        given = self.cleaned_data
        return "-".join(
            (given["nonce"], str(given["package"]), given["currency"], given["provider"])
        )


class InvoiceAddressForm(forms.ModelForm):  # type: ignore[type-arg] # not subscriptable here
    """The name and address that a buyer wants on invoices."""

    class Meta:
        model = InvoiceAddress
        fields = ["name", "address", "tax_id"]
        widgets = {
            "name": forms.TextInput(attrs={"class": "input", "autocomplete": "name"}),
            "address": forms.Textarea(
                attrs={"class": "input", "rows": 4, "autocomplete": "street-address"}
            ),
            "tax_id": forms.TextInput(attrs={"class": "input", "autocomplete": "off"}),
        }


class TopUpForm(forms.Form):
    """The terms of automatic purchases, and the consent to them."""

    offer = forms.ChoiceField(
        label=gettext_lazy("Buy"),
        widget=forms.Select(attrs={"class": "input"}),
        error_messages={
            "invalid_choice": gettext_lazy(
                "This package is no longer available. Choose another one."
            )
        },
    )
    threshold = CreditsInput(label=gettext_lazy("When the balance falls below"))
    cap = forms.DecimalField(
        label=gettext_lazy("Monthly limit"),
        min_value=0,
        max_digits=12,
        widget=forms.TextInput(attrs={"inputmode": "decimal", "autocomplete": "off"}),
        help_text=gettext_lazy("In the currency of the package. It is never exceeded."),
        error_messages={"invalid": gettext_lazy("Enter an amount of money, for example 50.")},
    )
    consent = forms.BooleanField(
        error_messages={"required": gettext_lazy("Automatic purchases need your consent.")},
        label=gettext_lazy(
            "I agree that my next payment method is saved and charged automatically, at most once per hour, until I turn this off here."
        ),
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

    @property
    def terms(self) -> dict[str, Any]:
        """The arguments of `auto_top_up.consent`."""
        given = self.cleaned_data
        package, _dash, currency = given["offer"].partition("-")
        places = credits.EXPONENTS.get(currency, 2)
        return {
            "package_id": int(package),
            "currency": currency,
            "threshold": given["threshold"],
            "monthly_cap_minor": int(given["cap"].scaleb(places)),
        }

    @staticmethod
    def initial_of(top_up: AutoTopUp | None) -> dict[str, Any]:
        """Return the initial values for terms that were agreed to before."""
        if top_up is None:
            return {}
        places = credits.EXPONENTS.get(top_up.currency, 2)
        return {
            "offer": f"{top_up.package_id}-{top_up.currency}",
            "threshold": top_up.threshold,
            "cap": Decimal(top_up.monthly_cap_minor).scaleb(-places),
        }
