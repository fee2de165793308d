from __future__ import annotations

from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand
from django.db import transaction

from chat.models import Assistant, LanguageModel

SYSTEM_PROMPT = "You are a helpful assistant. Answer clearly and to the point."
SUGGESTIONS = [
    "Explain how a rainbow comes about, in three sentences.",
    "Write a short, friendly note to a new neighbour.",
    "Give me five ideas for a rainy Sunday afternoon.",
]


class Command(BaseCommand):
    help = (
        "Adds the model that DEFAULT_MODEL names and an assistant that uses it. What is there "
        "already stays as the staff left it."
    )

    @transaction.atomic
    def handle(self, *args: Any, **options: Any) -> None:
        context = settings.DEFAULT_MODEL_CONTEXT
        model, is_new = LanguageModel.objects.get_or_create(
            name=settings.DEFAULT_MODEL,
            defaults={
                "provider_model": settings.DEFAULT_MODEL,
                "context_tokens": context,
                "max_output_tokens": min(4_096, context // 4),
            },
        )
        assistant, _ = Assistant.objects.get_or_create(
            slug="parley",
            defaults={
                "name": "Parley",
                "system_prompt": SYSTEM_PROMPT,
                "model": model,
                "suggestions": SUGGESTIONS,
            },
        )
        if is_new and assistant.model != model:
            # DEFAULT_MODEL was changed: the default assistant follows, once.
            assistant.model = model
            assistant.save(update_fields=["model"])
        self.stdout.write(f"{assistant.name} answers with {assistant.model.name}.")
