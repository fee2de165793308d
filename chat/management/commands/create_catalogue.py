from __future__ import annotations

from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand
from django.db import transaction

from billing.credits import MICRO
from billing.models import CreditPackage, ModelPrice, PackagePrice
from chat.models import Assistant, LanguageModel, Provider
from chat.models.catalogue import SUGGESTIONS, ModelKind

SYSTEM_PROMPT = "You are a helpful assistant. Answer clearly and to the point."

# The embedding model of `make run` (chatproject/local/embeddings.py); it costs nothing.
EMBEDDINGS = "Embeddings"  # its provider
E5 = "multilingual-e5-small"
E5_VALUES = {
    "provider_model": E5,
    "kind": ModelKind.EMBEDDING,
    "dimensions": 384,
    "max_inputs": 64,
    "context_tokens": 512,
    "query_prefix": "query: ",
    "passage_prefix": "passage: ",
    "min_similarity": 0.8,
    "restricted": True,  # one core serves it: not for the API's users
}

# Slug, name, credits, bonus credits, price in US cents: a credit is worth a cent, see CREDIT_USD.
PACKAGES = [
    ("small", "Small", 500, 0, 500),
    ("medium", "Medium", 2_000, 100, 2_000),
    ("large", "Large", 5_000, 500, 5_000),
]


class Command(BaseCommand):
    help = (
        "Adds the environment's provider (OPENAI_BASE_URL), the model that DEFAULT_MODEL names, its "
        "price, an assistant that uses it, the embedding model at EMBEDDINGS_BASE_URL, and packages of "
        "credits. Existing rows are left as they are."
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
        if settings.EMBEDDINGS_BASE_URL:
            add_embeddings(settings.EMBEDDINGS_BASE_URL)
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


def add_embeddings(base_url: str) -> None:
    """Add the embedding model at an address, for documents unless another one is; its address follows the setting."""
    provider, _ = Provider.objects.update_or_create(
        name=EMBEDDINGS, defaults={"base_url": base_url}
    )
    is_free = not LanguageModel.objects.filter(documents=True).exists()
    LanguageModel.objects.get_or_create(
        provider=provider, name=E5, defaults={**E5_VALUES, "documents": is_free}
    )
    if not ModelPrice.objects.filter(model=E5).exists():
        ModelPrice.objects.create(
            model=E5, in_per_m=0, cached_in_per_m=0, out_per_m=0, source="EMBEDDINGS_BASE_URL"
        )
