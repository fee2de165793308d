"""Admin of language models and assistants."""

from __future__ import annotations

import re
from typing import Any

from django import forms
from django.contrib import admin
from django.core.exceptions import ValidationError
from django.forms.fields import InvalidJSONInput

from billing import credits
from billing.credits import CreditsFormField
from billing.metering import pricing
from chat.models import Assistant, LanguageModel
from chatproject.lib.admin import BaseAdmin

UNSTORABLE = re.compile("[\0\ud800-\udfff]")  # JSON can write them, Postgres refuses them


class SuggestionsFormField(forms.JSONField):
    """A list of texts in JSON. Any other value would break the page of a new chat.

    Django's own field raises for nesting and numbers that Python does not read.
    """

    def to_python(self, value: Any) -> Any:
        try:
            texts = super().to_python(value)
        except (RecursionError, ValueError):
            texts = False
        if texts is None:
            return []
        is_list = isinstance(texts, list) and all(isinstance(text, str) for text in texts)
        if not is_list or any(map(UNSTORABLE.search, texts)):
            raise ValidationError('Write a list of texts, for example: ["Explain a rainbow"].')
        return list(texts)

    def bound_data(self, data: Any, initial: Any) -> Any:
        return InvalidJSONInput(data or "")  # shown again as it was typed


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
    form_fields = {"message_fee": CreditsFormField, "suggestions": SuggestionsFormField}
    list_display = ["name", "model", "position", "enabled"]
    list_filter = ["enabled", "model"]
    search_fields = ["name", "slug"]
    prepopulated_fields = {"slug": ["name"]}
