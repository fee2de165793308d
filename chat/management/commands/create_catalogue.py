from __future__ import annotations

from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand
from django.db import transaction

from billing.credits import MICRO
from billing.models import CreditPackage, ModelPrice, PackagePrice
from chat.models import Assistant, LanguageModel, Provider
from chat.models.catalogue import SUGGESTIONS

SYSTEM_PROMPT = "You are a helpful assistant. Answer clearly and to the point."

# Slug, name, credits, bonus credits, price in US cents: a credit is worth a cent, see CREDIT_USD.
PACKAGES = [
    ("small", "Small", 500, 0, 500),
    ("medium", "Medium", 2_000, 100, 2_000),
    ("large", "Large", 5_000, 500, 5_000),
]


class Command(BaseCommand):
    help = (
        "Adds the environment's provider (OPENAI_BASE_URL), the model that DEFAULT_MODEL names, its "
        "price, an assistant that uses it, and packages of credits. Existing rows are left as they are."
    )

    @transaction.atomic
    def handle(self, *args: Any, **options: Any) -> None:
        provider = environment_provider()
        if provider is None:
            self.stdout.write(
                "Staff have replaced the environment's provider; models are left alone."
            )
        else:
            assistant = add_assistant(provider)
            self.stdout.write(f"{assistant.name} answers with {assistant.model.name}.")
        packages = [] if CreditPackage.objects.exists() else PACKAGES
        for position, (slug, name, credits, bonus, cents) in enumerate(packages):
            package = CreditPackage.objects.create(
                slug=slug,
                name=name,
                credits=credits * MICRO,
                bonus=bonus * MICRO,
                popular=slug == "medium",
                position=position,
            )
            PackagePrice.objects.create(package=package, currency="USD", amount_minor=cents)


def environment_provider() -> Provider | None:
    """Return the environment's provider with its models, added where it is missing.

    None if there are providers but none of the environment: staff gave its row an address, or
    deleted it.
    """
    provider = Provider.objects.filter(base_url="").first()
    if provider is None:
        if Provider.objects.exists():
            return None
        provider = Provider.objects.create(name="Environment")
    # The previous release still adds models without a provider during a rolling upgrade.
    known = LanguageModel.objects.filter(provider=provider).values("name")
    LanguageModel.objects.filter(provider=None).exclude(name__in=known).update(provider=provider)
    return provider


def add_assistant(provider: Provider) -> Assistant:
    """Return the first assistant; add it, the model that DEFAULT_MODEL names, and the model's price."""
    context = settings.DEFAULT_MODEL_CONTEXT
    model, is_new = LanguageModel.objects.get_or_create(
        provider=provider,
        name=settings.DEFAULT_MODEL,
        defaults={
            "provider_model": settings.DEFAULT_MODEL,
            "context_tokens": context,
            "max_output_tokens": min(4_096, context // 4),
        },
    )
    if not ModelPrice.objects.filter(model=model.provider_model).exists():
        price_in, price_cached, price_out = settings.DEFAULT_MODEL_PRICE
        ModelPrice.objects.create(
            model=model.provider_model,
            in_per_m=price_in,
            cached_in_per_m=price_cached,
            out_per_m=price_out,
            source="DEFAULT_MODEL_PRICE",
        )
    assistant, _ = Assistant.objects.get_or_create(
        slug="parley",
        defaults={
            "name": "Parley",
            "system_prompt": SYSTEM_PROMPT,
            "model": model,
            "suggestions": list(SUGGESTIONS),
        },
    )
    if is_new and assistant.model != model:
        # DEFAULT_MODEL was changed: the default assistant follows, once.
        assistant.model = model
        assistant.save(update_fields=["model"])
    return assistant
