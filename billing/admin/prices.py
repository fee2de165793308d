"""Admin of model prices, which are added and never changed, and of credit packages."""

from __future__ import annotations

from decimal import Decimal
from difflib import get_close_matches
from typing import Any

from django import forms
from django.apps import apps
from django.conf import settings
from django.contrib import admin, messages
from django.core.exceptions import ValidationError
from django.db.models import Exists, OuterRef
from django.http import HttpRequest
from django.utils import timezone
from django.utils.html import format_html_join
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from billing import credits
from billing.admin.base import AuditedAdmin, RecordAdmin, amount, money
from billing.admin.fields import TiersFormField, major, minor, show_tiers
from billing.credits import CreditsFormField
from billing.metering import pricing
from billing.metering.publishing import FIGURES, publish
from billing.models import CreditPackage, ModelPrice, PackagePrice
from billing.payments import providers
from chatproject.lib.admin import NOTHING, BaseAdmin, client_ip, column, staff_id

RATES = FIGURES
TITLES = ("input", "cached", "output", "reasoning", "per call")  # of the list's columns
PER_MILLION = gettext_lazy("Credits per million tokens.")


class PriceForm(forms.ModelForm):  # type: ignore[type-arg] # not generic at run time
    """A new price, in credits. Staff confirm the replacement of another one by a tick."""

    in_per_m = CreditsFormField(label=gettext_lazy("Input"), help_text=PER_MILLION)
    cached_in_per_m = CreditsFormField(label=gettext_lazy("Cached input"), help_text=PER_MILLION)
    out_per_m = CreditsFormField(label=gettext_lazy("Output"), help_text=PER_MILLION)
    reasoning_per_m = CreditsFormField(
        label=gettext_lazy("Reasoning"),
        required=False,
        help_text=f"{PER_MILLION} Empty: as output.",
    )
    request_fee = CreditsFormField(
        label=gettext_lazy("Request fee"),
        initial=0,
        help_text=gettext_lazy("Credits per call of the provider."),
    )
    tiers = TiersFormField(
        required=False,
        help_text=(
            gettext_lazy(
                "Prices for long prompts, one tier a line: above how many tokens of the prompt, then "
                "credits per million. For example 200000: input 2.5, cached 0.25, output 15"
            )
        ),
    )
    replace = forms.BooleanField(
        required=False,
        label=gettext_lazy("Replace the price in force"),
        help_text=gettext_lazy("Tick it after comparing both, when the model has a price already."),
    )

    class Meta:
        model = ModelPrice
        fields = ("model", "effective_from", *RATES, "tiers", "source")

    def clean(self) -> dict[str, Any] | None:
        cleaned = super().clean()
        model, moment = self.cleaned_data.get("model"), self.cleaned_data.get("effective_from")
        replaced = pricing.in_force(model, moment) if model and moment else None
        if replaced is not None and not self.cleaned_data.get("replace"):
            self.add_error(
                "replace",
                (
                    _(
                        "This replaces the price of %(model)s: %(replaced)s. Compare the figures, then tick this box."
                    )
                    % {"model": model, "replaced": in_words(replaced)}
                ),
            )
        return cleaned


def in_words(price: ModelPrice) -> str:
    """Return a price in one line, in credits per million tokens."""
    figures = [
        f"{word} {credits.exact(getattr(price, field))}"
        for word, field in (
            ("input", "in_per_m"),
            ("cached", "cached_in_per_m"),
            ("output", "out_per_m"),
            ("reasoning", "reasoning_per_m"),
        )
        if getattr(price, field) is not None
    ]
    return ", ".join(figures)


@admin.register(ModelPrice)
class ModelPriceAdmin(BaseAdmin):
    form = PriceForm
    list_display = [
        "model",
        "used",
        column(
            "effective_from", lambda moment: f"{timezone.localtime(moment):%Y-%m-%d %H:%M}", "from"
        ),
        *(amount(field, title) for field, title in zip(RATES, TITLES, strict=True)),
        "long_prompts",
        "source",
    ]
    search_fields = ["model", "source"]

    def get_queryset(self, request: HttpRequest) -> Any:
        # A row of chat, which billing does not import.
        same_name = apps.get_model("chat", "LanguageModel").objects.filter(
            provider_model=OuterRef("model")
        )
        return super().get_queryset(request).annotate(is_used=Exists(same_name))

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def get_fields(self, request: HttpRequest, obj: ModelPrice | None = None) -> list[Any]:
        if obj is None:
            return ["model", "effective_from", *RATES, "tiers", "source", "replace"]
        return [
            "model",
            "effective_from",
            *(column(field, credits.exact) for field in RATES),
            "long_prompts",
            "source",
            "created_by",
            "created_at",
        ]

    def get_readonly_fields(self, request: HttpRequest, obj: ModelPrice | None = None) -> list[Any]:
        return [] if obj is None else self.get_fields(request, obj)

    def save_model(self, request: HttpRequest, obj: ModelPrice, form: Any, change: bool) -> None:
        publish(obj, actor_id=staff_id(request), ip=client_ip(request))
        named = apps.get_model("chat", "LanguageModel").objects.order_by().distinct()
        names = [*named.values_list("provider_model", flat=True)]
        if obj.model not in names:
            by_key = {name.casefold(): name for name in names}
            close = get_close_matches(obj.model.casefold(), by_key, 1, 0.8)
            hint = (_(" Did you mean %(close)s?") % {"close": by_key[close[0]]}) if close else ""
            self.message_user(
                request,
                (
                    _(
                        "No language model has the name %(model)s at its provider, so no reply uses this price yet.%(hint)s"
                    )
                    % {"model": obj.model, "hint": hint}
                ),
                messages.WARNING,
            )

    @admin.display(description=gettext_lazy("used"))
    def used(self, price: Any) -> str:
        """Return whether a language model has the name that the price is for."""
        return "yes" if price.is_used else _("no: no model of that name")

    @admin.display(description=gettext_lazy("long prompts"))
    def long_prompts(self, price: ModelPrice) -> str:
        """Return the tiers as they are typed."""
        return show_tiers(price.tiers) or "the same"


class PackagePriceForm(forms.ModelForm):  # type: ignore[type-arg]
    """A price with its decimals, stored in minor units."""

    price = forms.DecimalField(
        min_value=Decimal(0),
        max_digits=15,
        help_text=gettext_lazy("With decimals, for example 5.00."),
    )

    class Meta:
        model = PackagePrice
        fields = ("currency",)

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        if self.instance.pk is not None:
            self.initial["price"] = major(self.instance.amount_minor, self.instance.currency)

    def clean_currency(self) -> str:
        return str(self.cleaned_data["currency"]).strip().upper()

    def clean(self) -> dict[str, Any] | None:
        cleaned = super().clean()
        price, currency = self.cleaned_data.get("price"), self.cleaned_data.get("currency")
        if price is not None and currency:
            try:
                self.instance.amount_minor = minor(price, currency)
            except ValidationError as error:
                self.add_error("price", error)
            else:
                if self.instance.amount_minor == 0:
                    self.add_error("price", _("A package cannot be free: enter a price above 0."))
                elif self.instance.amount_minor % credits.step_of_money(currency):
                    self.add_error(
                        "price",
                        (
                            _("The last digit of a price in %(currency)s must be 0.")
                            % {"currency": currency}
                        ),
                    )
        return cleaned


class PackagePriceInline(admin.TabularInline):  # type: ignore[type-arg]
    model = PackagePrice
    form = PackagePriceForm
    fields = ["currency", "price"]
    extra = 1


@admin.register(CreditPackage)
class CreditPackageAdmin(AuditedAdmin):
    list_display = [
        "name",
        amount("credits"),
        amount("bonus"),
        "prices_shown",
        column("valid_days", str, "days"),
        "plan",
        "popular",
        "active",
        "position",
    ]
    list_filter = ["active"]
    list_select_related = ["plan"]
    search_fields = ["name", "slug"]
    prepopulated_fields = {"slug": ["name"]}
    form_fields = dict.fromkeys(("credits", "bonus"), CreditsFormField)
    inlines = [PackagePriceInline]

    def get_queryset(self, request: HttpRequest) -> Any:
        return super().get_queryset(request).prefetch_related("prices")

    def save_formset(self, request: HttpRequest, form: Any, formset: Any, change: bool) -> None:
        before = _prices(form.instance)
        super().save_formset(request, form, formset, change)
        after = _prices(form.instance)
        if before != after:
            words = f"{shown_prices(before)} → {shown_prices(after)}"
            self._record(request, "price", form.instance, before, after, words)

    def save_related(self, request: HttpRequest, form: Any, formsets: Any, change: bool) -> None:
        super().save_related(request, form, formsets, change)
        found = {
            *PackagePrice.objects.filter(package=form.instance).values_list("currency", flat=True)
        }
        sold = ", ".join(settings.CURRENCIES)
        unsold = ", ".join(sorted(found - {*settings.CURRENCIES}))
        if unsold:
            words = _(
                "Nobody can buy it in %(unsold)s: this site sells in %(sold)s. Add the currency to CURRENCIES, or remove the price."
            ) % {"unsold": unsold, "sold": sold}
        elif not found:
            words = _("Nobody can buy it: it has no price. Add one in %(sold)s.") % {"sold": sold}
        elif not providers.enabled():
            words = _("Nobody can buy it: no payment provider is configured. See docs/payments.md.")
        else:
            return
        self.message_user(request, words, messages.WARNING)

    @admin.display(description=gettext_lazy("prices"))
    def prices_shown(self, package: CreditPackage) -> str:
        """Return the price in each currency, with a mark where it is not sold."""
        is_sold = bool(providers.enabled())
        shown = format_html_join(
            ", ",
            '<span class="nowrap">{}</span>{}',
            (
                (
                    credits.show_money(price.amount_minor, price.currency),
                    "" if price.currency in settings.CURRENCIES and is_sold else " (not sold)",
                )
                for price in package.prices.all()
            ),
        )
        return shown or "none: not sold"


def _prices(package: CreditPackage) -> dict[str, int]:
    prices = PackagePrice.objects.filter(package=package)
    return {price.currency: price.amount_minor for price in prices}


def shown_prices(prices: dict[str, int]) -> str:
    """Return the prices of a package in one line."""
    shown = [credits.show_money(amount, currency) for currency, amount in sorted(prices.items())]
    return ", ".join(shown) or NOTHING


@admin.register(PackagePrice)
class PackagePriceAdmin(RecordAdmin):
    """The target of links: prices are changed with their package."""

    list_display = ["package", "currency", money("amount_minor", "price")]
    money_fields = {"amount_minor": "currency"}
    list_select_related = ["package"]
    search_fields = ["package__name", "currency"]
