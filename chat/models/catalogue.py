"""The catalogue: language models that a provider serves, and the assistants that use them."""

from __future__ import annotations

from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models
from django.db.models import Q


class Continuation(models.TextChoices):
    """Request format that makes a model continue a partial reply; empty when it cannot."""

    PREFILL = "prefill", "The last message is the beginning (Anthropic, llama.cpp, OpenRouter)"
    PREFIX = "prefix", "The last message is marked as prefix (Mistral, DeepSeek)"
    VLLM = "vllm", "continue_final_message (vLLM, SGLang)"


class LanguageModel(models.Model):
    """A model that the provider at OPENAI_BASE_URL serves."""

    name = models.CharField(max_length=100, unique=True, help_text="What people see.")
    provider_model = models.CharField(
        max_length=200, help_text="The name that the provider knows it by, for example gpt-4o-mini."
    )
    context_tokens = models.PositiveIntegerField(
        default=128_000,
        validators=[MinValueValidator(512)],
        help_text="Size of the context window: prompt and reply together.",
    )
    max_output_tokens = models.PositiveIntegerField(
        default=4_096,
        validators=[MinValueValidator(16)],
        help_text="The longest reply that is asked for.",
    )
    continuation = models.CharField(
        max_length=7,
        blank=True,
        default="",
        db_default="",
        choices=Continuation,
        help_text="How it is asked to go on with a reply that lost its worker. If unsure, leave it: "
        "the reply then begins anew.",
    )
    enabled = models.BooleanField(default=True)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["name"]
        constraints = [
            models.CheckConstraint(
                condition=Q(max_output_tokens__lt=models.F("context_tokens")),
                name="model_reply_fits_context",
                violation_error_message="The longest reply must be smaller than the context window.",
            ),
        ]

    def __str__(self) -> str:
        return self.name


class Assistant(models.Model):
    """A model with a system prompt; each conversation has one assistant."""

    slug = models.SlugField(unique=True)
    name = models.CharField(max_length=100)
    system_prompt = models.TextField(blank=True)
    model = models.ForeignKey(LanguageModel, on_delete=models.PROTECT, related_name="assistants")
    temperature = models.FloatField(
        null=True,
        blank=True,
        validators=[MinValueValidator(0.0), MaxValueValidator(2.0)],
        help_text="From 0 to 2; empty leaves it to the provider.",
    )
    suggestions = models.JSONField(
        default=list,
        blank=True,
        help_text="First questions that a new chat offers: a list of texts.",
    )
    message_fee = models.PositiveBigIntegerField(
        default=0,
        help_text="Micro-credits for each message, on top of the model's price; for what its tools cost.",
    )
    enabled = models.BooleanField(default=True)
    position = models.PositiveSmallIntegerField(default=0, help_text="The lowest is the default.")
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["position", "name"]

    def __str__(self) -> str:
        return self.name
