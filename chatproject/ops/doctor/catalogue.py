"""The catalogue: new chats need an enabled assistant whose model has a price; and staff."""

from __future__ import annotations

from collections.abc import Iterator

from django.conf import settings
from django.contrib.auth import get_user_model

from billing.metering import pricing
from chat.conversations import lifecycle
from chat.models import Assistant, LanguageModel
from chat.models.catalogue import ModelKind
from chatproject.ops.doctor.finding import Finding, ok, problem, warning

PART = "catalogue"


def check() -> Iterator[Finding]:
    """Yield whether new chats can be begun. Raises db.UNREACHABLE."""
    assistant = lifecycle.default_assistant()
    usable = Assistant.objects.filter(personal=False, enabled=True, model__enabled=True)
    enabled = LanguageModel.objects.filter(enabled=True)
    if assistant is not None:
        models = enabled.filter(kind=ModelKind.CHAT).count()
        yield ok(PART, f"{assistant.name} answers with {assistant.model.name}; models: {models}")
    elif not enabled.filter(kind=ModelKind.CHAT).exists():
        yield problem(
            PART,
            "there is no enabled model, so no user can chat",
            "Run manage.py create_catalogue, which adds DEFAULT_MODEL; or add a model in the admin.",
        )
    elif not usable.exists():
        yield problem(
            PART,
            "no enabled assistant has an enabled model, so no user can chat",
            "Enable one in the admin (Chat, Assistants), or run manage.py create_catalogue.",
        )
    elif not usable.exclude(model__provider__enabled=False).exists():
        yield problem(
            PART,
            "the provider of every assistant's model is disabled, so no user can chat",
            "Enable it in the admin (Chat, Providers).",
        )
    else:
        yield problem(
            PART,
            "no model of an assistant has a price, so no user can chat",
            "Add a price in the admin (Billing, Model prices), or run manage.py import_prices FILE.",
        )
    if settings.BILLING:
        unpriced = enabled.exclude(provider_model__in=pricing.priced_models())
        if assistant is not None and unpriced.exists():
            names = ", ".join(unpriced.values_list("name", flat=True)[:3])
            yield warning(
                PART, f"models without a price are not offered: {names}", "Add prices in the admin."
            )
    if not get_user_model().objects.filter(is_staff=True, is_active=True).exists():
        yield warning(
            "staff", "no user may enter the admin", "Run manage.py createsuperuser (or make staff)."
        )
