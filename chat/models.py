"""The tables of chat. Rules that must hold whatever the code does are constraints here.

A conversation is a tree of messages; its `leaf` names the message that the page ends with, and the
path from the root to the leaf is what is shown and what the model is told. A reply is a message
that a `Run` makes. Keys are UUIDs of version 7: they sort by time of making.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar
from uuid import UUID

import uuid_utils.compat
from django.conf import settings
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models
from django.db.models import Q
from django.urls import reverse
from django.utils.functional import cached_property

from billing import credits
from billing.models import ModelPrice

if TYPE_CHECKING:
    from billing.metering.settlement import Terms


def new_id() -> UUID:
    """A fresh UUID of version 7 (RFC 9562)."""
    return uuid_utils.compat.uuid7()


class Continuation(models.TextChoices):
    """How a model is asked to go on from the beginning of a reply; empty when it cannot."""

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
    """What a conversation talks to: a model with a system prompt."""

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


class ConversationQuerySet(models.QuerySet["Conversation"]):
    def kept(self) -> ConversationQuerySet:
        """Without the deleted ones."""
        return self.filter(deleted_at=None)

    def with_lock(self) -> ConversationQuerySet:
        """Locked until the COMMIT, with assistant and model, which are not."""
        return self.select_related("assistant__model").select_for_update(no_key=True, of=("self",))


class Conversation(models.Model):
    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    owner = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="conversations"
    )
    assistant = models.ForeignKey(Assistant, on_delete=models.PROTECT, related_name="conversations")
    title = models.CharField(max_length=100, blank=True)
    leaf = models.ForeignKey(
        "Message", null=True, blank=True, on_delete=models.SET_NULL, related_name="+"
    )
    client_id = models.CharField(  # noqa: DJ001 # NULL, since two empty texts would not be unique
        max_length=64,
        null=True,
        blank=True,
        help_text="Named by the client that began it with its first message, so that a repetition finds it.",
    )
    created_at = models.DateTimeField(auto_now_add=True)
    updated_at = models.DateTimeField(help_text="When the last message was sent or finished.")
    deleted_at = models.DateTimeField(null=True, blank=True)

    objects: ClassVar[Any] = ConversationQuerySet.as_manager()

    class Meta:
        ordering = ["-updated_at"]
        indexes = [
            models.Index(
                fields=["owner", "-updated_at", "-id"],
                name="conversation_list",
                condition=Q(deleted_at=None),
            ),
        ]
        constraints = [
            models.UniqueConstraint(fields=["owner", "client_id"], name="conversation_begun_once"),
        ]

    def __str__(self) -> str:
        return self.title or "New chat"

    def get_absolute_url(self) -> str:
        return reverse("chat:conversation", args=[self.id])


class Message(models.Model):
    class Role(models.TextChoices):
        USER = "user"
        ASSISTANT = "assistant"

    class Status(models.TextChoices):
        """How the making of a message stands; a user's own message is always done."""

        PENDING = "pending"
        DONE = "done"
        STOPPED = "stopped"
        FAILED = "failed"

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    conversation = models.ForeignKey(
        Conversation, on_delete=models.CASCADE, related_name="messages"
    )
    parent = models.ForeignKey(
        "self", null=True, blank=True, on_delete=models.CASCADE, related_name="children"
    )
    role = models.CharField(max_length=9, choices=Role)
    status = models.CharField(max_length=7, choices=Status, default=Status.DONE)
    text = models.TextField(blank=True)
    html = models.TextField(
        blank=True, help_text="The text as rendered and sanitised when it was finished."
    )
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["id"]
        constraints = [
            models.CheckConstraint(
                condition=Q(role__in=["user", "assistant"]), name="message_role_known"
            ),
            models.CheckConstraint(
                condition=Q(status__in=["pending", "done", "stopped", "failed"]),
                name="message_status_known",
            ),
            models.CheckConstraint(
                condition=Q(role="assistant") | Q(status="done"), name="message_of_user_is_done"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.role} {self.id}"

    @cached_property
    def ordered_parts(self) -> list[MessagePart]:
        """What it holds besides its text; whoever has that at hand sets it, and saves a query."""
        return list(self.parts.all())


class MessagePart(models.Model):
    """What a reply holds besides its text, in order: reasoning, and later tables and charts."""

    class Kind(models.TextChoices):
        REASONING = "reasoning"

    message = models.ForeignKey(Message, on_delete=models.CASCADE, related_name="parts")
    position = models.PositiveSmallIntegerField()
    kind = models.CharField(max_length=20, choices=Kind)
    data = models.JSONField()

    class Meta:
        ordering = ["position"]
        constraints = [
            models.UniqueConstraint(fields=["message", "position"], name="part_position_once"),
        ]

    def __str__(self) -> str:
        return f"{self.kind} of {self.message_id}"


class RunQuerySet(models.QuerySet["Run"]):
    def active(self) -> RunQuerySet:
        """Those that have not ended."""
        return self.filter(status__in=Run.ACTIVE)


class Run(models.Model):
    """One making of one reply. Its row says whether it is over; see docs/architecture.md."""

    class Status(models.TextChoices):
        QUEUED = "queued"
        RUNNING = "running"
        DONE = "done"
        STOPPED = "stopped"
        FAILED = "failed"

    ACTIVE = (Status.QUEUED, Status.RUNNING)

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    conversation = models.ForeignKey(Conversation, on_delete=models.CASCADE, related_name="runs")
    message = models.OneToOneField(Message, on_delete=models.CASCADE, related_name="run")
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="runs"
    )
    client_id = models.CharField(max_length=64)
    status = models.CharField(max_length=7, choices=Status, default=Status.QUEUED)
    attempt = models.PositiveSmallIntegerField(
        default=0, help_text="How many workers have claimed it so far."
    )
    seq = models.BigIntegerField(
        default=0, help_text="Number of the last event; set when the run has ended."
    )

    # What it was made with: the catalogue may change afterwards.
    assistant = models.ForeignKey(Assistant, on_delete=models.PROTECT, related_name="+")
    model = models.ForeignKey(LanguageModel, on_delete=models.PROTECT, related_name="+")
    model_snapshot = models.JSONField(default=dict)

    # What earlier attempts delivered and the next one goes on from: see chat.attempts.
    # (Both defaults, here and below: while a new version is rolled out the old one still inserts.)
    prefix = models.TextField(blank=True, default="", db_default="")
    prefix_reasoning = models.TextField(blank=True, default="", db_default="")

    # Its terms, fixed when it was asked for. Amounts are micro-credits; see billing.metering.settlement.
    price = models.ForeignKey(
        ModelPrice, null=True, blank=True, on_delete=models.PROTECT, related_name="+"
    )
    fee = models.PositiveBigIntegerField(default=0)
    prompt_estimate = models.PositiveIntegerField(
        default=0, help_text="Tokens of the prompt as counted here."
    )
    max_tokens = models.PositiveIntegerField(
        null=True, blank=True, help_text="The longest reply that may be asked for."
    )
    shortened = models.BooleanField(
        default=False, help_text="The balance allowed no longer reply than this."
    )
    most = models.PositiveBigIntegerField(
        default=0, help_text="What it could cost at most: so much was held."
    )
    cost = models.PositiveBigIntegerField(null=True, blank=True)
    charged = models.PositiveBigIntegerField(
        null=True, blank=True, help_text="What the user paid of the cost."
    )

    queued_at = models.DateTimeField(auto_now_add=True)
    started_at = models.DateTimeField(null=True, blank=True)
    first_token_at = models.DateTimeField(null=True, blank=True)
    ended_at = models.DateTimeField(null=True, blank=True)

    prompt_tokens = models.PositiveIntegerField(null=True, blank=True)
    cached_tokens = models.PositiveIntegerField(null=True, blank=True)
    completion_tokens = models.PositiveIntegerField(null=True, blank=True)
    reasoning_tokens = models.PositiveIntegerField(null=True, blank=True)
    usage_estimated = models.BooleanField(
        default=False, help_text="The provider sent no usage; the tokens were counted here."
    )
    finish_reason = models.CharField(max_length=30, blank=True)
    error_code = models.CharField(max_length=30, blank=True)
    error_message = models.CharField(max_length=300, blank=True)
    worker = models.CharField(max_length=100, blank=True)

    objects: ClassVar[Any] = RunQuerySet.as_manager()

    # Role, text and parent of the newest messages before its reply, as read when it was claimed.
    newest: list[tuple[str, str, str | None]] | None = None

    # What was agreed on for it, from its making to the end of that transaction.
    terms: Terms | None = None

    class Meta:
        ordering = ["-id"]
        indexes = [
            models.Index(
                fields=["status", "queued_at"],
                name="run_active",
                condition=Q(status__in=["queued", "running"]),
            ),
            models.Index(
                fields=["ended_at"], name="run_ended", condition=Q(ended_at__isnull=False)
            ),
        ]
        constraints = [
            models.UniqueConstraint(
                fields=["conversation"],
                condition=Q(status__in=["queued", "running"]),
                name="run_one_active_per_conversation",
            ),
            models.UniqueConstraint(
                fields=["conversation", "client_id"], name="run_once_per_client_id"
            ),
            models.CheckConstraint(
                condition=Q(status__in=["queued", "running", "done", "stopped", "failed"]),
                name="run_status_known",
            ),
            models.CheckConstraint(
                condition=Q(status__in=["queued", "running"], ended_at=None)
                | Q(status__in=["done", "stopped", "failed"], ended_at__isnull=False),
                name="run_ended_when_over",
            ),
        ]

    def __str__(self) -> str:
        return f"run {self.id}"

    @property
    def is_over(self) -> bool:
        return self.status not in self.ACTIVE

    @property
    def bill(self) -> str:
        """What the user paid for it, as the page says it; empty while, or where, nothing is known."""
        if self.charged is None:
            return ""
        return f"{credits.show(self.charged)} credits" if self.charged else "free"

    @property
    def bill_details(self) -> str:
        """What the bill is for: tokens in and out, and who counted them."""
        if self.prompt_tokens is None:
            return "Nothing was delivered."
        cached = f", of them {self.cached_tokens:,} from the cache" if self.cached_tokens else ""
        cap = f" of at most {self.max_tokens:,}" if self.status == self.Status.STOPPED else ""
        counted = " Counted here, as the provider did not say." if self.usage_estimated else ""
        return (
            f"{self.prompt_tokens:,} tokens in{cached}, "
            f"{self.completion_tokens or 0:,} tokens out{cap}.{counted}"
        )
