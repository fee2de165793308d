"""Runs: each generates one reply."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar
from uuid import UUID

from django.conf import settings
from django.db import models
from django.db.models import Q
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from billing import credits
from billing.models import ModelPrice
from chat.models.base import new_id
from chat.models.catalogue import Assistant, LanguageModel, Provider
from chat.models.conversations import Conversation
from chat.models.messages import Message

if TYPE_CHECKING:
    from billing.metering.settlement import Quote


class RunQuerySet(models.QuerySet["Run"]):
    def active(self) -> RunQuerySet:
        """Select the runs that have not ended."""
        return self.filter(status__in=Run.ACTIVE)

    def running_at(self, attempts: dict[UUID, int]) -> set[UUID]:
        """Return the ids of the runs that are running at the attempt given for each."""
        rows = self.filter(pk__in=attempts, status=Run.Status.RUNNING)
        return {pk for pk, attempt in rows.values_list("pk", "attempt") if attempts[pk] == attempt}


class Run(models.Model):
    """One generation of one reply. Its row decides whether it has ended (docs/architecture.md)."""

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
        default=0, help_text=gettext_lazy("How many workers have claimed it so far.")
    )
    seq = models.BigIntegerField(
        default=0, help_text="Number of the last event; set when the run has ended."
    )
    # Defaults of the database as well: during a rolling upgrade the old version still inserts rows.
    lane = models.PositiveSmallIntegerField(
        default=0,
        db_default=0,
        help_text=gettext_lazy("Tells apart the active runs of one comparison, from 0."),
    )
    moves_leaf = models.BooleanField(
        default=False,
        db_default=True,
        help_text=gettext_lazy(
            "The conversation will end with its reply, unless it fails or has no text."
        ),
    )
    continued = models.PositiveIntegerField(
        default=0,
        db_default=0,
        help_text="Characters of another reply that it continues; 0 for a reply of its own.",
    )

    # Assistant and model at the time of the request: the catalogue may change afterwards.
    assistant = models.ForeignKey(Assistant, on_delete=models.PROTECT, related_name="+")
    model = models.ForeignKey(LanguageModel, on_delete=models.PROTECT, related_name="+")
    model_snapshot = models.JSONField(default=dict)
    # No indexes: every run would write into them, and only the admin filters by them.
    provider = models.ForeignKey(
        Provider,
        null=True,
        blank=True,
        on_delete=models.SET_NULL,
        related_name="+",
        db_index=False,
        help_text=gettext_lazy("The provider that was asked last."),
    )
    answered_by = models.ForeignKey(
        LanguageModel,
        null=True,
        blank=True,
        on_delete=models.SET_NULL,
        related_name="+",
        db_index=False,
        help_text=gettext_lazy("The fallback that was asked last; empty: the run's own model."),
    )

    # The reply as earlier attempts left it, for the next one to continue: see chat.runs.handover.
    # (Default and db_default: during a rolling upgrade the old version still inserts rows.)
    prefix = models.TextField(blank=True, default="", db_default="")
    prefix_reasoning = models.TextField(blank=True, default="", db_default="")

    # Of a run that calls tools (chat.runs.steps): `prefix` is then the text of its finished steps.
    steps = models.PositiveSmallIntegerField(
        default=0,
        db_default=0,
        help_text=gettext_lazy("Stored steps: requests and calls of tools."),
    )
    waits = models.PositiveSmallIntegerField(
        default=0,
        db_default=0,
        help_text=gettext_lazy("How often it waited for its user's approval of a call."),
    )
    waits_until = models.DateTimeField(
        null=True,
        blank=True,
        help_text=gettext_lazy("It waits for its user's approval of a call, which expires then."),
    )

    # Price and limits, fixed at the request, in micro-credits; see billing.metering.settlement.
    price = models.ForeignKey(
        ModelPrice, null=True, blank=True, on_delete=models.PROTECT, related_name="+"
    )
    fee = models.PositiveBigIntegerField(default=0)
    prompt_estimate = models.PositiveIntegerField(
        default=0, help_text=gettext_lazy("Tokens of the prompt as counted here.")
    )
    max_tokens = models.PositiveIntegerField(
        null=True, blank=True, help_text=gettext_lazy("The longest reply that may be asked for.")
    )
    shortened = models.BooleanField(
        default=False, help_text=gettext_lazy("The balance allowed no longer reply than this.")
    )
    most = models.PositiveBigIntegerField(
        default=0, help_text=gettext_lazy("What it could cost at most: so much was held.")
    )
    cost = models.PositiveBigIntegerField(null=True, blank=True)
    charged = models.PositiveBigIntegerField(
        null=True, blank=True, help_text=gettext_lazy("What the user paid of the cost.")
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
    # Default and db_default as above.
    error_cause = models.CharField(
        max_length=20,
        blank=True,
        default="",
        db_default="",
        help_text=gettext_lazy("The kind of a provider's failure: key, quota, address, busy …"),
    )
    worker = models.CharField(max_length=100, blank=True)

    # An error_code: of a stopped run whose user did not stop it.
    STOPPED_BY_STAFF = "stopped_by_staff"
    INTERRUPTED = "interrupted"  # the process that was to deliver its reply has ended
    STOPPED_BY_OTHERS = (STOPPED_BY_STAFF, INTERRUPTED)

    objects: ClassVar[Any] = RunQuerySet.as_manager()

    # Role, text, attachments and parent of the newest messages before the reply; read by the claim.
    newest: list[tuple[str, str, list[Any] | None, str | None]] | None = None

    # The instructions of its conversation's project and of the conversation itself; read by the claim.
    instructions: str = ""

    # Whether it answers from documents; read by the claim.
    has_documents = False

    # Text and reasoning of its finished steps; set by the claim, which leaves no `prefix` then.
    finished_text = finished_reasoning = ""

    # The provider at which it has a place; set by the claim.
    place: int | None = None

    # Whether its user has devices for notifications; set only by its end.
    has_devices = False

    # The request of a run of the API, an ApiRequest; set when it was made or read.
    api_request: Any = None

    # The quote that was applied to it; set only within the transaction that creates the run.
    quote: Quote | None = None

    class Meta:
        ordering = ["-id"]
        # Of RQ's pages in the admin (chat.admin.queue_pages): their tables are in Redis.
        permissions = [
            ("view_queue", gettext_lazy("Can view the queues of jobs")),
            ("change_queue", gettext_lazy("Can change the queues of jobs")),
        ]
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
                fields=["conversation", "lane"],
                condition=Q(status__in=["queued", "running"]),
                name="run_one_active_per_lane",
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
    def has_ended(self) -> bool:
        return self.status not in self.ACTIVE

    @property
    def compared(self) -> int:
        """The number of replies of the comparison that it belongs to; 0 without one."""
        return int(self.model_snapshot.get("compared", 0))

    @property
    def api(self) -> dict[str, Any] | None:
        """Of a run of the API: `key`, the id of its API key, and whether its reply is `streamed`."""
        found: dict[str, Any] | None = self.model_snapshot.get("api")
        return found

    @property
    def api_key_id(self) -> int | None:
        """The id of the API key that asked for it: by a call of /v1, or by the REST API; None for people."""
        found: int | None = self.api["key"] if self.api else self.model_snapshot.get("api_key")
        return found

    @property
    def usage(self) -> dict[str, int | bool] | None:
        """The tokens, as programs receive them, and whether they are `estimated`; None before any were counted."""
        if self.prompt_tokens is None:
            return None
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens or 0,
            "cached_tokens": self.cached_tokens or 0,
            "reasoning_tokens": self.reasoning_tokens or 0,
            "estimated": self.usage_estimated,
        }

    @property
    def bill(self) -> str:
        """The amount that the user paid, for the page; empty before the end and without billing."""
        if self.charged is None:
            return ""
        if not self.charged:
            return _("free")
        return _("%(amount)s credits") % {"amount": credits.show(self.charged)}
