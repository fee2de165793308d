"""Categories of insights with their types, and the jobs that users have bought for documents."""

from __future__ import annotations

from typing import Any, ClassVar

from django.conf import settings
from django.core.validators import MinValueValidator
from django.db import models
from django.db.models import F, Q
from django.urls import reverse
from django.utils.translation import gettext, gettext_lazy

from billing.models.base import CreditsField, at_least, known
from chat.documents.models import Document
from chat.insights import schemas, templates
from chat.models import LanguageModel, new_id


class Category(models.Model):
    """A set of insight types that is sold for one price per document."""

    slug = models.SlugField(max_length=50, unique=True)
    name = models.CharField(max_length=80, help_text=gettext_lazy("What people see."))
    description = models.CharField(
        max_length=300, help_text=gettext_lazy("What the buyer gets, in plain words.")
    )
    kind = models.CharField(
        max_length=5,
        choices=Document.Kind,
        default=Document.Kind.CHAT,
        help_text=gettext_lazy("The kind of documents that it is offered for."),
    )
    price = CreditsField(
        validators=[MinValueValidator(0)],
        help_text=gettext_lazy(
            "Micro-credits for all types; a document that some of them do not fit pays for the others alone."
        ),
    )
    model = models.ForeignKey(
        LanguageModel,
        null=True,
        blank=True,
        on_delete=models.SET_NULL,
        related_name="+",
        help_text=gettext_lazy(
            "The model that reads the documents; empty: that of new chats. Its cost is ours."
        ),
    )
    position = models.PositiveSmallIntegerField(default=0, help_text=gettext_lazy("0 is first."))
    active = models.BooleanField(
        default=True, help_text=gettext_lazy("It is for sale. Sold insights stay readable.")
    )
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["position", "id"]
        verbose_name = gettext_lazy("insight category")
        verbose_name_plural = gettext_lazy("insight categories")
        constraints = [
            models.CheckConstraint(condition=at_least(0, "price"), name="category_price_in_bounds"),
        ]

    def __str__(self) -> str:
        return self.name

    @property
    def shown_name(self) -> str:
        """The name in the active language; that of staff stays as it was written."""
        return gettext(self.name)

    @property
    def shown_description(self) -> str:
        """The description in the active language; that of staff stays as it was written."""
        return gettext(self.description) if self.description else ""


class InsightType(models.Model):
    """One question that a model answers about a document, in the form of a JSON schema."""

    category = models.ForeignKey(Category, on_delete=models.CASCADE, related_name="types")
    key = models.SlugField(max_length=50)
    name = models.CharField(max_length=80, help_text=gettext_lazy("The title of its card."))
    prompt = models.TextField(
        max_length=templates.MOST_CHARACTERS,
        validators=[templates.validate],
        help_text=templates.HELP,
    )
    keywords = models.JSONField(
        default=list,
        blank=True,
        validators=[templates.validate_keywords],
        help_text=gettext_lazy(
            "Words by which passages of a long document are chosen, one for each line, in any language."
        ),
    )
    schema = models.JSONField(
        validators=[schemas.validate],
        help_text=gettext_lazy("The JSON schema of the answer, an object: docs/insights.md."),
    )
    example = models.JSONField(
        null=True,
        blank=True,
        help_text=gettext_lazy("An answer that is shown before buying; it fits the schema."),
    )
    groups = models.BooleanField(
        default=True,
        help_text=gettext_lazy("It also fits chats of more than two people."),
    )
    position = models.PositiveSmallIntegerField(default=0, help_text=gettext_lazy("0 is first."))
    active = models.BooleanField(default=True)

    class Meta:
        ordering = ["position", "id"]
        constraints = [
            models.UniqueConstraint(fields=["category", "key"], name="type_once_per_category"),
        ]

    def __str__(self) -> str:
        return self.name

    @property
    def shown_name(self) -> str:
        """The name in the active language; that of staff stays as it was written."""
        return gettext(self.name)

    def clean(self) -> None:
        """Check that the example fits the schema."""
        if self.example is not None and isinstance(self.schema, dict):
            schemas.validate_example(self.schema, self.example)


class InsightJob(models.Model):
    """The insights of one category into one document that a user has bought: one hold, one charge.

    Its id is that of the hold. While it is active, or has delivered anything, there is no other one of its category
    and document. Its charge is final at its first end; what failed can be tried again for nothing.
    """

    class Status(models.TextChoices):
        ACTIVE = "active", gettext_lazy("Being made")
        DONE = "done", gettext_lazy("Complete")
        PARTIAL = "partial", gettext_lazy("In part")
        FAILED = "failed", gettext_lazy("Failed")
        STOPPED = "stopped", gettext_lazy("Stopped")

    has_texts = True  # for chat.access: staff need the permission to read conversations

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    owner = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="insight_jobs"
    )
    document = models.ForeignKey(Document, on_delete=models.CASCADE, related_name="insight_jobs")
    category = models.ForeignKey(Category, on_delete=models.PROTECT, related_name="jobs")
    model = models.ForeignKey(LanguageModel, null=True, on_delete=models.SET_NULL, related_name="+")
    language = models.CharField(max_length=10, help_text=gettext_lazy("Of its texts."))
    status = models.CharField(max_length=7, choices=Status, default=Status.ACTIVE)
    price = CreditsField(help_text=gettext_lazy("Micro-credits for all of its insights."))
    is_held = models.BooleanField(
        default=False, help_text=gettext_lazy("The price was held; without a hold it is free.")
    )
    total = models.PositiveSmallIntegerField(help_text=gettext_lazy("Insights that were bought."))
    delivered = models.PositiveSmallIntegerField(
        default=0, help_text=gettext_lazy("Of these, at the time of the charge.")
    )
    charged = CreditsField(
        null=True, blank=True, help_text=gettext_lazy("Micro-credits, once it has ended.")
    )
    created_at = models.DateTimeField(auto_now_add=True)
    ended_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["-id"]
        indexes = [
            models.Index(
                fields=["created_at"], name="insight_job_active", condition=Q(status="active")
            ),
            models.Index(fields=["owner", "-id"], name="insight_job_of_owner"),
        ]
        constraints = [
            models.UniqueConstraint(
                fields=["document", "category"],
                condition=Q(status__in=["active", "done", "partial"]),
                name="insight_job_once",
            ),
            known("status", "active done partial failed stopped", "insight_job_status_known"),
            models.CheckConstraint(
                condition=at_least(0, "price")
                & Q(delivered__lte=F("total"))
                & (Q(charged=None) | Q(charged__gte=0, charged__lte=F("price"))),
                name="insight_job_in_bounds",
            ),
        ]

    def __str__(self) -> str:
        return f"insight job {self.pk}"

    def get_absolute_url(self) -> str:
        return reverse("chat:insight_category", args=[self.document_id, self.category.slug])

    @property
    def is_active(self) -> bool:
        """Whether it is not yet charged."""
        return self.status == self.Status.ACTIVE


class Insight(models.Model):
    """One insight of a job. It keeps the question as it was sold; a finished one is never made again."""

    class Status(models.TextChoices):
        QUEUED = "queued", gettext_lazy("Waiting")
        RUNNING = "running", gettext_lazy("Being made")
        DONE = "done", gettext_lazy("Done")
        FAILED = "failed", gettext_lazy("Failed")

    OPEN: ClassVar[tuple[Any, ...]] = (Status.QUEUED, Status.RUNNING)

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    job = models.ForeignKey(InsightJob, on_delete=models.CASCADE, related_name="insights")
    type = models.ForeignKey(InsightType, null=True, on_delete=models.SET_NULL, related_name="+")
    key = models.SlugField(max_length=50)
    name = models.CharField(max_length=80)
    position = models.PositiveSmallIntegerField()
    prompt = models.TextField()
    keywords = models.JSONField(default=list)
    schema = models.JSONField()
    status = models.CharField(max_length=7, choices=Status, default=Status.QUEUED)
    data = models.JSONField(null=True, blank=True)
    error = models.CharField(max_length=40, blank=True, help_text=gettext_lazy("A code."))
    attempt = models.PositiveSmallIntegerField(
        default=0, help_text=gettext_lazy("Claims by workers, of all tries.")
    )
    lost = models.PositiveSmallIntegerField(
        default=0, help_text=gettext_lazy("Attempts of this try that lost their worker.")
    )
    retries = models.PositiveSmallIntegerField(
        default=0, help_text=gettext_lazy("Further tries that its owner asked for.")
    )
    asked_tokens = models.PositiveIntegerField(
        default=0, help_text=gettext_lazy("Of the prompt of a request whose cost is not recorded.")
    )
    input_tokens = models.PositiveBigIntegerField(default=0)
    output_tokens = models.PositiveBigIntegerField(default=0)
    cost = CreditsField(default=0, help_text=gettext_lazy("Micro-credits that we bear."))
    beat_at = models.DateTimeField(
        auto_now_add=True, help_text=gettext_lazy("When it was queued or claimed.")
    )
    ended_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["job", "position"]
        indexes = [
            models.Index(
                fields=["beat_at"],
                name="insight_open",
                condition=Q(status__in=["queued", "running"]),
            ),
        ]
        constraints = [
            models.UniqueConstraint(fields=["job", "key"], name="insight_once_per_job"),
            known("status", "queued running done failed", "insight_status_known"),
            models.CheckConstraint(
                condition=~Q(status="done") | Q(data__isnull=False), name="insight_done_has_data"
            ),
        ]

    def __str__(self) -> str:
        return f"insight {self.pk}"

    @property
    def shown_name(self) -> str:
        """The name in the active language; that of staff stays as it was written."""
        return gettext(self.name)
