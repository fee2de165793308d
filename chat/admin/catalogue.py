"""Admin of language models and assistants."""

from __future__ import annotations

from django.contrib import admin

from billing import credits
from billing.credits import CreditsFormField
from billing.metering import pricing
from chat.models import Assistant, LanguageModel
from chatproject.lib.admin import BaseAdmin


@admin.register(LanguageModel)
class LanguageModelAdmin(admin.ModelAdmin):  # type: ignore[type-arg] # not generic at run time
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
class AssistantAdmin(BaseAdmin):
    form_fields = {"message_fee": CreditsFormField}
    list_display = ["name", "model", "position", "enabled"]
    list_filter = ["enabled", "model"]
    search_fields = ["name", "slug"]
    prepopulated_fields = {"slug": ["name"]}
