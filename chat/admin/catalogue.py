"""Admin of language models and assistants."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.http import HttpRequest

from billing import credits
from billing.admin.base import BillingAdmin
from billing.metering import pricing
from chat.models import Assistant, LanguageModel


class ReadOnlyAdmin(admin.ModelAdmin):  # type: ignore[type-arg] # not generic at run time
    """Shows rows that only the program writes."""

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


@admin.register(LanguageModel)
class LanguageModelAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    list_display = [
        "name",
        "provider_model",
        "context_tokens",
        "max_output_tokens",
        "continuation",
        "enabled",
        "price_now",
    ]
    list_filter = ["enabled"]
    search_fields = ["name", "provider_model"]

    @admin.display(description="price, in / out")
    def price_now(self, model: LanguageModel) -> str:
        """Return the present price in credits per million tokens; an unpriced model is not offered."""
        price = pricing.in_force(model.provider_model)
        if price is None:
            return "no price: not offered"
        return f"{credits.exact(price.in_per_m)} / {credits.exact(price.out_per_m)}"


@admin.register(Assistant)
class AssistantAdmin(BillingAdmin):
    credit_fields = ("message_fee",)
    list_display = ["name", "model", "position", "enabled"]
    list_filter = ["enabled", "model"]
    search_fields = ["name", "slug"]
    prepopulated_fields = {"slug": ["name"]}
